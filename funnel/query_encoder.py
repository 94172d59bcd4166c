"""The encoder of a build, and that of an opened index, which is loaded when the first text comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.data.corpus import Corpus
from funnel.data.encoding import DEFAULT_ENCODER, Encoder, EncoderSource, load_encoder
from funnel.errors import EncoderError

__all__ = ["QueryEncoder", "build_encoder"]


def build_encoder(corpus: Corpus, encoder: EncoderSource | None, exact: bool, device: str) -> Encoder | None:
    """The encoder to build with: the user's, or the default one where the corpus has no vectors."""
    if encoder is None and corpus.has_vectors:
        return None
    return load_encoder(DEFAULT_ENCODER if encoder is None else encoder, exact=exact, device=device)


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
        self._refused: str | None = None
        self._lock = Lock()

    def then(self, settings: Mapping[str, object], dim: int) -> QueryEncoder:
        """That of an index that was built anew in the same folder."""
        made = QueryEncoder(self._given, settings, dim, self._device)
        if self._given is not None and settings["encoder"] != self._settings["encoder"]:
            made._refused = (
                f"the index was built again, with the encoder {settings['encoder']} instead of "
                f"{self._settings['encoder']}; open it again, with encoder= where it cannot be loaded by name"
            )
        return made

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors [n, d]. Raises EncoderError."""
        return self.load().encode_query(texts)

    def load(self) -> Encoder:
        """The encoder itself, loaded once however many threads wait for it.

        Raises EncoderError where there is none, or it is of another width.
        """
        if self._refused is not None:
            raise EncoderError(self._refused)
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = self._made()
        return self._loaded

    def _made(self) -> Encoder:
        loaded = self._by_name() if self._given is None else load_encoder(self._given)
        if loaded.dim != self._dim:
            raise EncoderError(f"the encoder gives {loaded.dim} dims, the index holds {self._dim}")
        return loaded

    def _by_name(self) -> Encoder:
        name = self._settings["encoder"]
        if name is None:
            words = "; hybrid=1 looks for its words alone" if self._settings["documents"] else ""
            raise EncoderError(
                "this index was built from vectors, so it cannot read texts; search with a vector, or open it "
                f"with encoder={words}"
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
