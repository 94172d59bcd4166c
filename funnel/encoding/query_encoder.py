"""The encoder of a build, and that of an opened index, which is loaded when the first text comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.encoding.encoders import (
    Encoder,
    EncoderSource,
    load_encoder,
)
from funnel.encoding.models import canonical_name
from funnel.encoding.prompts import TextOptions, TextSettings
from funnel.errors import EncoderError
from indexes.system import free_in_children

__all__ = ["QueryEncoder"]


class QueryEncoder:
    """Encodes query texts for one index.

    An index names a model on the hub, and nothing else: a folder is read only where the caller gives it, and never one
    inside the index.

    given: the encoder the user gave, or None. settings: of the manifest; they name the encoder of the build. dim: the
    width of the index. device: where a model is loaded. path: of the index. allow_download: whether a model that the
    index names may be fetched.
    """

    def __init__(
        self,
        given: EncoderSource | Encoder | None,
        settings: TextSettings,
        dim: int,
        device: str,
        path: Path | None = None,
        allow_download: bool = False,
    ):
        # A relative folder is that of the working folder now.
        self._given = canonical_name(str(given)) if isinstance(given, str | Path) else given
        self._loaded: Encoder | None = None
        self._settings = settings
        self._options = TextOptions.of_manifest(settings)
        self._dim = dim
        self._device = device
        self._path = path
        self._allow_download = allow_download
        self._refused: str | None = None
        self._lock = free_in_children(Lock())

    @property
    def given_name(self) -> str | None:
        """The name or folder by which the caller's encoder is loaded; None where there is none."""
        if isinstance(self._given, Encoder):
            return self._given.name if self._given.reopenable else None
        return self._given if isinstance(self._given, str) else None

    def then(self, settings: TextSettings, dim: int) -> QueryEncoder:
        """That of an index that was built anew in the same folder."""
        made = QueryEncoder(self._given, settings, dim, self._device, self._path, self._allow_download)
        if self._given is not None and settings.encoder != self._settings.encoder:
            made._refused = (
                f"the index was built again, with the encoder {settings.encoder} instead of "
                f"{self._settings.encoder}; open it again, with encoder= where it cannot be loaded by name"
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
        if self._given is None or isinstance(self._given, str):
            of_index = self._given is None
            name = self._given or self._name_of_index()
            inside = self._path is not None and Path(name).is_relative_to(self._path.resolve()) and Path(name).is_dir()
            if inside and not of_index:
                raise EncoderError(f"the encoder {name} lies inside of the index {self._path}; give one from elsewhere")
            loaded = load_encoder(
                name,
                exact=self._settings.exact_encoding,
                device=self._device,
                options=self._options,
                of_index=of_index,
                fetch=self._allow_download or not of_index,
            )
        else:
            loaded = load_encoder(self._given, options=self._options)
        if loaded.dim != self._dim:
            raise EncoderError(f"the encoder gives {loaded.dim} dims, the index holds {self._dim}")
        return loaded

    def _name_of_index(self) -> str:
        name = self._settings.encoder
        if name is None:
            words = "; hybrid=1 looks for its words alone" if self._settings.documents else ""
            raise EncoderError(
                "this index was built from vectors, so it cannot read texts; search with a vector, or open it "
                f"with encoder={words}"
            )
        if not self._settings.encoder_reopenable:
            raise EncoderError(
                f"this index was built with {name}, which cannot be loaded by name; open it with encoder="
            )
        return name
