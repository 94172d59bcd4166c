"""The encoder of a build, and that of an opened index, which is loaded when the first text comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from funnel.data.corpus import Corpus
from funnel.encoding.encoders import DEFAULT_ENCODER, Encoder, EncoderSource, load_encoder
from funnel.encoding.models import canonical_name
from funnel.encoding.prompts import TextOptions
from funnel.errors import EncoderError, InputError
from indexes.forks import free_in_children

__all__ = ["QueryEncoder", "build_encoder"]


def build_encoder(
    corpus: Corpus, encoder: EncoderSource | None, exact: bool, device: str, options: TextOptions
) -> Encoder | None:
    """The encoder to build with: the user's, or the default one where the corpus has no vectors.

    Raises InputError where there is none that the options could be for.
    """
    if encoder is None and corpus.has_vectors:
        if options != TextOptions():
            raise InputError(
                f"{corpus.name} has vectors, and query_prompt, document_prompt and truncate_dim are for an encoder; "
                "give the encoder that made the vectors, or leave these out"
            )
        return None
    return load_encoder(DEFAULT_ENCODER if encoder is None else encoder, exact=exact, device=device, options=options)


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
        settings: Mapping[str, object],
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

    def then(self, settings: Mapping[str, object], dim: int) -> QueryEncoder:
        """That of an index that was built anew in the same folder."""
        made = QueryEncoder(self._given, settings, dim, self._device, self._path, self._allow_download)
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
        if self._given is None:
            loaded = self._named(self._name_of_index(), of_index=True)
        elif isinstance(self._given, str):
            self._refuse_inside(self._given)
            loaded = self._named(self._given, of_index=False)
        else:
            loaded = load_encoder(self._given, options=self._options)
        if loaded.dim != self._dim:
            raise EncoderError(f"the encoder gives {loaded.dim} dims, the index holds {self._dim}")
        return loaded

    def _name_of_index(self) -> str:
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
        return str(name)

    def _refuse_inside(self, name: str) -> None:
        if self._path is not None and Path(name).is_dir() and Path(name).is_relative_to(self._path.resolve()):
            raise EncoderError(f"the encoder {name} lies inside of the index {self._path}; give one from elsewhere")

    def _named(self, name: str, of_index: bool) -> Encoder:
        exact = bool(self._settings.get("exact_encoding"))
        if not exact and self._device == "cpu":
            from funnel.encoding.stored import stored_encoder

            stored = stored_encoder(name, options=self._options, of_index=of_index)
            if stored is not None:
                return stored
        fetch = self._allow_download or not of_index
        return load_encoder(
            name, exact=exact, device=self._device, options=self._options, of_index=of_index, fetch=fetch
        )
