"""The encoder of an opened index, loaded when the first text comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from funnel.data.encoding import Encoder, EncoderSource, load_encoder
from funnel.errors import EncoderError

__all__ = ["QueryEncoder"]


class QueryEncoder:
    """Encodes query texts for one index.

    given: the encoder the user gave, or None. settings: of the manifest; they name the encoder of the build. dim: the
    width of the index. device: where a model is loaded.
    """

    def __init__(self, given: EncoderSource | Encoder | None, settings: Mapping[str, object], dim: int, device: str):
        self._given = given
        self._loaded: Encoder | None = None
        self._settings = settings
        self._dim = dim
        self._device = device

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors [n, d]. Raises EncoderError."""
        return self.load().encode_query(texts)

    def load(self) -> Encoder:
        """The encoder itself. Raises EncoderError where there is none, or it is of another width."""
        if self._loaded is None:
            loaded = self._by_name() if self._given is None else load_encoder(self._given)
            if loaded.dim != self._dim:
                raise EncoderError(f"the encoder gives {loaded.dim} dims, the index holds {self._dim}")
            self._loaded = loaded
        return self._loaded

    def _by_name(self) -> Encoder:
        name = self._settings["encoder"]
        if name is None:
            raise EncoderError(
                "this index was built from vectors, so it cannot read texts; search with a vector, or open it "
                "with encoder="
            )
        if not self._settings["encoder_reopenable"]:
            raise EncoderError(
                f"this index was built with {name}, which cannot be loaded by name; open it with encoder="
            )
        exact = bool(self._settings["exact_encoding"])
        if not exact and self._device == "cpu":
            from funnel.data.stored import stored_encoder

            stored = stored_encoder(str(name))
            if stored is not None:
                return stored
        return load_encoder(str(name), exact=exact, device=self._device)
