"""The contract of an adaptor, the registry of kinds, and how an adaptor is written and read.

A new kind is one class: decorate it with `register`, import it in `funnel/adaptors/__init__.py`.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from funnel.checks import checked_flag, checked_name, checked_path, checked_seed, checked_whole, checked_widths
from funnel.errors import DamagedIndexError, FormatVersionError, InputError

# Steps of half an octave from the narrowest prefix worth a coarse index; wider than half of the full width, or than
# 256, nothing is left to win by training (PCA holds .99 of the neighbours there), and a step costs by the widest.
NARROWEST, WIDEST = 32, 256
STEPS = (1.0, 1.5)
LARGEST_WIDTH = 2**20  # of a whole embedding: a matrix of a wider one takes terabytes


def default_widths(dim: int) -> tuple[int, ...]:
    """Widths to train for: half octaves from 32 up to half of dim or 256; at least one, below dim if there is room."""
    dim = checked_whole("dim", dim, 1, LARGEST_WIDTH)
    widths = [int(NARROWEST * 2**octave * step) for octave in range(32) for step in STEPS]
    return tuple(width for width in widths if width <= min(dim / 2, WIDEST)) or (max(1, dim // 2),)


# Raised by one with every change that an older reader would misread.
FORMAT_VERSION = 1
TENSOR_FILE, HEADER_FILE = "adaptor.safetensors", "adaptor.json"

REMEDY = "restore the file or fit the adaptor again"


class AdaptorHeader(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What `adaptor.json` says of the adaptor; `sha256` is that of the tensors' file.

    seen_queries: hashes of the queries that trained or chose it, rising: see `funnel.data.queries.query_hashes`.
    """

    format_version: int
    kind: str
    dim: Annotated[int, msgspec.Meta(ge=1)]
    dims: tuple[int, ...]
    isometric: bool
    settings: dict[str, int]
    sha256: str
    seen_queries: tuple[str, ...] = ()


def _read_header(folder: Path) -> AdaptorHeader:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds {HEADER_FILE} and {TENSOR_FILE}")
    path = folder / HEADER_FILE
    try:
        fields = msgspec.json.decode(path.read_bytes())
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{path} is of format {version}; this version reads up to {FORMAT_VERSION}; upgrade funnel-retrieval"
            )
        return msgspec.convert(fields, AdaptorHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedIndexError(f"{path} does not describe an adaptor ({error}); {REMEDY}") from error


def _read_tensors(folder: Path, sha256: str) -> dict[str, NDArray[np.float32]]:
    """The tensors, their checksum first. Raises DamagedIndexError for anything but finite float32."""
    path = folder / TENSOR_FILE
    payload = path.read_bytes()
    found = hashlib.sha256(payload).hexdigest()
    if found != sha256:
        raise DamagedIndexError(f"{path} has sha256 {found[:12]}…, {HEADER_FILE} says {sha256[:12]}…; {REMEDY}")
    try:
        tensors = load_tensors(payload)
    except SafetensorError as error:
        raise DamagedIndexError(f"{path} is not a safetensors file ({error}); {REMEDY}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise DamagedIndexError(f"{path}: tensor {name} is {tensor.dtype}; expected finite float32; {REMEDY}")
    return tensors


FloatArray = NDArray[np.float32]
Sample = NDArray[Any] | Iterable[NDArray[Any]]
AdaptorType = TypeVar("AdaptorType", bound="type[Adaptor]")

_CLASSES: "dict[str, type[Adaptor]]" = {}


class Adaptor(torch.nn.Module, ABC):
    """A map R^dim → R^dim whose output is meant to be read by prefixes.

    It is a torch module, and one of sentence-transformers as well: put behind the modules of a model it adapts
    `sentence_embedding`, and is saved and loaded with the model. It computes in float32 whatever the model does.

    Attributes:
        kind: the name under which the class is registered and written to disk.
        isometric: True where the map keeps every inner product at full width, so that exact search
            over adapted vectors ranks as exact search over the user's own.
        dim: the width of what goes in and of what comes out.
        dims: the widths it was trained for, rising; empty where every prefix is as good as it gets.
        seen_queries: hashes of the queries that trained or chose it: they certify no index that is built with it.
    """

    kind: ClassVar[str]
    isometric: ClassVar[bool]

    def __init__(self, dim: int, dims: Sequence[int] = ()) -> None:
        super().__init__()
        self.dim: int = checked_whole("dim", dim, 1, LARGEST_WIDTH)
        self.dims: tuple[int, ...] = () if isinstance(dims, Sequence) and not dims else checked_widths(dims, self.dim)
        self.seen_queries: frozenset[str] = frozenset()

    def extra_repr(self) -> str:
        """What torch shows between the brackets."""
        return f"dim={self.dim}" + (f", dims={list(self.dims)}" if self.dims else "")

    @classmethod
    @abstractmethod
    def fit(
        cls, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False
    ) -> "Adaptor":
        """Make an adaptor from data.

        Args:
            sample: float [n, dim], or an iterable of such chunks, read once.
            dims: the prefix widths that matter, in training half octaves up to half the width or 256 by default; kinds
                that are not trained for widths check it and look no further.
            seed: of whatever is random in the fitting.
            progress: show a bar with the rate on stderr.

        Raises:
            InputError: no rows, rows of differing widths, values that are not finite, or widths that do not rise
                from 1 to dim.
        """

    @abstractmethod
    def map(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map float [..., dim] of this module's own type and device; differentiable."""

    def settings(self) -> dict[str, int]:
        """Whole numbers that `build` needs beside the tensors, such as hidden widths."""
        return {}

    @classmethod
    @abstractmethod
    def build(
        cls, dim: int, dims: Sequence[int], settings: Mapping[str, int], tensors: Mapping[str, FloatArray]
    ) -> Self:
        """The adaptor again, from what `settings` and `tensors` gave.

        Raises:
            InputError: a tensor or setting is missing, of the wrong shape, or breaks what the kind promises.
        """

    def tensors(self) -> dict[str, FloatArray]:
        """What the adaptor has learnt, by name, as it is written to disk."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}

    def transform(self, vectors: NDArray[Any]) -> FloatArray:
        """Map vectors; the full width is kept.

        Args:
            vectors: float [n, dim]; anything but float32 is converted.

        Returns:
            float32 [n, dim]; where nothing changes, it may be the array that was given.

        Raises:
            InputError: the array is not two-dimensional or not of this adaptor's width.
        """
        if getattr(vectors, "ndim", 0) != 2 or vectors.shape[1] != self.dim:
            raise InputError(
                f"vectors of shape {getattr(vectors, 'shape', None)} were given to an adaptor of dimension {self.dim}; "
                f"give an array of shape (n, {self.dim})"
            )
        given = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        with torch.inference_mode():
            adapted: FloatArray = self.map(given.to(self.device)).cpu().numpy()
        return adapted

    def unit_transform(self, vectors: NDArray[Any]) -> FloatArray:
        """As `transform` of unit rows, of unit length again where the map does not keep it."""
        adapted = self.transform(vectors)
        if self.isometric:
            return adapted
        norms = np.linalg.norm(adapted, axis=1, keepdims=True)
        scaled: FloatArray = adapted / np.maximum(norms, np.finfo(np.float32).tiny)
        return scaled

    def prefixes(self, vectors: NDArray[Any], width: int) -> FloatArray:
        """The first `width` dims of `unit_transform`: float32 [n, width], C-contiguous."""
        return np.ascontiguousarray(self.unit_transform(vectors)[:, :width])

    @property
    def device(self) -> torch.device:
        """Where the tensors are; the CPU where there are none."""
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Adapt `sentence_embedding`, as a module of sentence-transformers does.

        Args:
            features: holds `sentence_embedding`, [n, dim] of any float type.

        Returns:
            The same dict, that entry replaced by the adapted embedding of the same type.
        """
        embedding = features["sentence_embedding"]
        features["sentence_embedding"] = self.map(embedding.float()).to(embedding.dtype)
        return features

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move to a device, but stay float32: what torch calls for `to`, `half`, `cuda` and the like."""

        # A model in half precision would round a rotation away from orthogonal, which its file must not be.
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def inverse(self, adapted: FloatArray) -> FloatArray:
        """The vectors again, from what `transform` made of them: float32 [n, dim].

        Raises:
            InputError: the kind cannot be inverted.
        """
        del adapted  # kinds that can be inverted take it
        raise InputError(f"an adaptor of kind {self.kind!r} cannot be inverted; give the original vectors")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `adaptor.safetensors` and `adaptor.json` into the folder, which is made if need be.

        The description comes last, so that an interrupted write is found on reading.
        """
        path = checked_path("folder", folder)
        tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in self.tensors().items()}
        payload = save_tensors(tensors)
        header = AdaptorHeader(
            format_version=FORMAT_VERSION, kind=self.kind, dim=self.dim, dims=self.dims, isometric=self.isometric,
            settings=self.settings(), sha256=hashlib.sha256(payload).hexdigest(),
            seen_queries=tuple(sorted(self.seen_queries)),
        )  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
        (path / TENSOR_FILE).write_bytes(payload)
        (path / HEADER_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(header), indent=2) + b"\n")

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Adaptor":
        """Read an adaptor of any registered kind.

        Raises:
            InputError: the folder is missing, or the kind is not known to this version.
            FormatVersionError: the files are of a newer format.
            DamagedIndexError: a file is missing, cut short, changed, or does not fit its description.
        """
        path = checked_path("folder", folder)
        try:
            header = _read_header(path)
            cls = adaptor_class(header.kind)
            tensors = _read_tensors(path, header.sha256)
        except FileNotFoundError as error:
            raise DamagedIndexError(f"{error.filename} is missing; {REMEDY}") from error
        try:
            if header.isometric != cls.isometric:
                raise InputError(f"isometric is {header.isometric}, expected {cls.isometric} for kind {cls.kind!r}")
            adaptor = cls.build(header.dim, header.dims, header.settings, tensors)
        except InputError as error:
            raise DamagedIndexError(f"{folder} does not hold together: {error}; {REMEDY}") from error
        adaptor.seen_queries = frozenset(header.seen_queries)
        return adaptor

    @property
    def checksum(self) -> str:
        """The sha256 of kind, widths, settings and tensors: equal adaptors have equal checksums."""
        digest = hashlib.sha256(json.dumps([self.kind, self.dim, self.dims, self.settings()]).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode() + b"\0")
            digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
        return digest.hexdigest()


def register(cls: AdaptorType) -> AdaptorType:
    """Enter an adaptor class into the registry under its kind (a class decorator)."""
    if cls.kind in _CLASSES:
        raise ValueError(f"the adaptor kind {cls.kind!r} is registered twice")
    _CLASSES[cls.kind] = cls
    return cls


def adaptor_kinds() -> tuple[str, ...]:
    """The kinds that can be asked for, in alphabetical order."""
    return tuple(sorted(_CLASSES))


def adaptor_class(kind: str) -> type[Adaptor]:
    """The class of a kind.

    Raises:
        InputError: the kind is not registered; the message lists those that are.
    """
    if checked_name("kind", kind) not in _CLASSES:
        raise InputError(f"the adaptor kind {kind!r} is not known; choose one of {', '.join(adaptor_kinds())}")
    return _CLASSES[kind]


def make_adaptor(
    kind: str, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False
) -> Adaptor:
    """Fit an adaptor of the kind named; the arguments and errors are those of `Adaptor.fit`."""
    checked_flag("progress", progress)
    checked_seed(seed)
    widths = None if dims is None else checked_widths(dims)
    return adaptor_class(kind).fit(sample, dims=widths, seed=seed, progress=progress)


def chunks_of(sample: Sample) -> Iterator[NDArray[Any]]:
    """The chunks of a sample, each [rows, dim], all of the first one's width.

    Raises:
        InputError: there are no rows, or a chunk is not two-dimensional or of another width.
    """
    dim = rows = 0
    if not isinstance(sample, Iterable):
        raise InputError(f"sample is {shown(sample)}; expected an array (rows, dimension), or several")
    for chunk in [sample] if isinstance(sample, np.ndarray) else sample:
        if not isinstance(chunk, np.ndarray) or chunk.ndim != 2 or (dim and chunk.shape[1] != dim):
            shape = getattr(chunk, "shape", None)
            raise InputError(f"a sample chunk has shape {shape}; give arrays of shape (rows, {dim or 'dimension'})")
        dim = chunk.shape[1]
        rows += len(chunk)
        yield chunk
    if rows == 0:
        raise InputError("an adaptor was to be fitted on 0 rows; give at least one vector")
