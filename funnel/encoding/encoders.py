"""Texts to unit vectors: by a sentence-transformers model, or by anything the user brings."""

import copy
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from funnel.encoding.models import DEFAULT_ENCODER, canonical_name, load_model, local_folder
from funnel.encoding.prompts import TextOptions
from funnel.errors import EncoderError, InputError
from funnel.progress import Progress
from funnel.rows import unit_rows
from indexes.system import free_in_children

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from funnel.encoding.packed import PackedModel

__all__ = [
    "AS_THE_MODEL_SAYS",
    "DEFAULT_ENCODER",
    "CallableEncoder",
    "Encoder",
    "EncoderSource",
    "ModelEncoder",
    "Numbers",
    "checked",
    "kept",
    "load_encoder",
]

TEXTS_PER_CALL = 4096  # handed to an encoder at once: its progress shows, and memory stays bounded
PLAIN_TEXTS_PER_CALL = 512  # the same for a model's own encode, which is several times slower
# Texts of a batch of a model's own encode. Of MiniLM on the CPU in bfloat16, 32 gave 127 short texts a second, 64 110.
CPU_ROWS, CUDA_ROWS = 32, 512
PROBE_TEXT = "dimension"  # encoded once to learn the width of a callable's vectors


Numbers: TypeAlias = int | NDArray[np.int64]
"""Where texts stand in the whole that they are part of: the place of the first, or of each."""


@runtime_checkable
class Encoder(Protocol):
    """What turns texts into unit vectors."""

    @property
    def name(self) -> str:
        """What the index's manifest keeps: a model's name or folder, or "callable:<qualified name>"."""

    @property
    def reopenable(self) -> bool:
        """Whether `load_encoder(name)` gives this encoder again."""

    @property
    def dim(self) -> int:
        """The width d of the vectors."""

    @property
    def options(self) -> TextOptions:
        """The prompts as texts, and what is kept of each vector."""

    def encode(self, texts: Sequence[str], progress: bool = False, numbers: Numbers = 0) -> NDArray[np.float32]:
        """Encode documents: float32 [n, d], unit rows. Raises EncoderError.

        numbers: of the texts in the whole they are from, for messages: that of the first, or of each.
        """

    def encode_query(self, texts: Sequence[str], numbers: Numbers = 0) -> NDArray[np.float32]:
        """Encode queries: as `encode`. Raises EncoderError."""


EncoderSource = str | Path | Callable[[list[str]], Any] | Encoder
"""What `load_encoder` takes; objects with an `encode` method as well."""


AS_THE_MODEL_SAYS = TextOptions()


def load_encoder(
    source: EncoderSource | Any,
    exact: bool = False,
    device: str = "auto",
    *,
    options: TextOptions = AS_THE_MODEL_SAYS,
    of_index: bool = False,
    fetch: bool = True,
) -> Encoder:
    """Make an encoder.

    Args:
        source: A sentence-transformers model by name or folder; such a model itself; any callable from a
            list of texts to an array [n, d]; or an object
            with `encode_document` or `encode` for documents and, if it has one, `encode_query`.
        options: Prompts, and how many dims are kept. Before the texts of a callable or an object texts can be put; it
            has no prompts by name.
        exact: Run the model's own `encode` in its own precision instead of half precision in fixed batches.
        device: "auto" (CUDA where there is any), or a torch device; for models by name or folder only.
        of_index: Of a model by name: see `load_model`.
        fetch: Of a model by name: see `load_model`.

    Raises:
        EncoderError: the model is not found or does not load, or the source is none of these.
        InputError: the device is not there; or the options name a prompt that it does not have.
        MissingPackageError: sentence-transformers is needed and not installed.
    """
    if not of_index:
        check_source(source)
    made = _made(source, exact, device, of_index, fetch)
    if options in (AS_THE_MODEL_SAYS, made.options):
        return made
    if made is source:  # what the caller holds stays as it is
        made = copy.copy(made)
    made.options = options.resolved(made.options, made.own_prompts, made.name)
    return made


def _made(
    source: EncoderSource | Any, exact: bool, device: str, of_index: bool, fetch: bool
) -> "ModelEncoder | CallableEncoder":
    """The encoder with the prompts of its own."""
    from funnel.encoding.stored import read_stored

    if isinstance(source, ModelEncoder | CallableEncoder):
        return source
    if isinstance(source, str | Path):
        name = str(source) if of_index else canonical_name(str(source))
        device = _resolve_device(device)
        folder = None if exact or device != "cpu" else local_folder(name, of_index=of_index)
        model: Any = None if folder is None else read_stored(folder)  # a plain BERT, without sentence-transformers
        model = model or load_model(name, device, of_index=of_index, fetch=fetch)
        return ModelEncoder(model, name, exact=exact, reopenable=True)
    module = sys.modules.get("sentence_transformers")  # an instance cannot have come without it
    if module is not None and isinstance(source, module.SentenceTransformer):
        # Half precision changes the weights in place, and this model belongs to the user.
        own = source if exact else copy.deepcopy(source)
        return ModelEncoder(own, f"object:{_qualified_name(type(source))}", exact=exact, reopenable=False)
    encode = getattr(source, "encode_document", None) or getattr(source, "encode", None)
    if callable(encode) and not isinstance(source, type):
        name = f"object:{_qualified_name(type(source))}"
        query = getattr(source, "encode_query", None)
        return CallableEncoder(encode, name, query if callable(query) else None)
    if callable(source):
        return CallableEncoder(source, f"callable:{_qualified_name(source)}")
    raise _none(source)


def check_source(source: object) -> None:
    """EncoderError for what can be no encoder, before anything is loaded; None is none yet."""
    if source is None or callable(source) or (isinstance(source, str | Path) and str(source)):
        return
    own = (getattr(source, name, None) for name in ("encode_document", "encode"))
    if isinstance(source, str) or not any(map(callable, own)):
        raise _none(source)


def _none(source: object) -> EncoderError:
    said = "an empty name" if isinstance(source, str) else f"a {type(source).__name__}"
    return EncoderError(
        f"an encoder cannot be {said}; pass a model's name or folder, a callable from "
        "a list of texts to an array [n, d], or an object with encode"
    )


class _Encoder:
    """What encoders have in common. dim: of the vectors as they are made; 0: not known yet."""

    def __init__(self, name: str, options: TextOptions, prompts: Mapping[str, str | None], dim: int = 0) -> None:
        self.name = name
        self.options = options
        self.own_prompts = prompts
        self._dim = dim

    @property
    def dim(self) -> int:
        """The width d of the vectors; found by encoding one word when nothing was encoded yet."""
        self._dim = self._dim or self._made([PROBE_TEXT], "document", "", int).shape[1]
        return self.options.width(self._dim, self.name)

    def encode(self, texts: Sequence[str], progress: bool = False, numbers: Numbers = 0) -> NDArray[np.float32]:
        """Encode documents: see `Encoder.encode`."""
        return self._run(texts, "document", self.options.document_prompt, progress, numbers)

    def encode_query(self, texts: Sequence[str], numbers: Numbers = 0) -> NDArray[np.float32]:
        """Encode queries: see `Encoder.encode_query`."""
        return self._run(texts, "query", self.options.query_prompt, False, numbers)

    def _run(
        self, texts: Sequence[str], task: str, prompt: str | None, progress: bool, numbers: Numbers
    ) -> NDArray[np.float32]:
        if not len(texts):
            return np.empty((0, self.dim), dtype=np.float32)
        with Progress(total=len(texts), desc="encoding", unit="docs", disable=not progress) as bar:
            values = self._made(texts, task, prompt, bar.update)
        return kept(values, self.options, self.name, numbers)

    def _made(
        self, texts: Sequence[str], task: str, prompt: str | None, advance: Callable[[int], object]
    ) -> NDArray[Any]:
        raise NotImplementedError

    def _in_parts(
        self, encode: Callable[[list[str]], Any], texts: Sequence[str], most: int, advance: Callable[[int], object]
    ) -> NDArray[Any]:
        """What `encode` gives of at most so many texts at once, checked and put together."""
        parts = []
        for start in range(0, len(texts), most):
            part = list(texts[start : start + most])
            parts.append(checked(encode(part), len(part), self._dim or None, self.name))
            self._dim = parts[-1].shape[1]
            advance(len(part))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class CallableEncoder(_Encoder):
    """An encoder around any callable from a list of texts to an array [n, d]."""

    reopenable = False

    def __init__(
        self,
        encode: Callable[[list[str]], Any],
        name: str,
        encode_query: Callable[[list[str]], Any] | None = None,
    ) -> None:
        super().__init__(name, TextOptions("", "", kept=True), {})
        self._encoders = {"document": encode, "query": encode_query or encode}

    def _made(
        self, texts: Sequence[str], task: str, prompt: str | None, advance: Callable[[int], object]
    ) -> NDArray[Any]:
        prompted = [f"{prompt}{text}" for text in texts] if prompt else texts
        return self._in_parts(self._encoders[task], prompted, TEXTS_PER_CALL, advance)


class ModelEncoder(_Encoder):
    """An encoder around a sentence-transformers model, or one that was read from its folder.

    Unless `exact`, a float32 model runs in half precision where the device has it (float16 on CUDA, bfloat16
    on CPUs with native instructions): a plain BERT by name on the CPU without padding, others by their own `encode`.
    Cosines to the exact vectors are at least 0.998. Models that pad texts on the left keep theirs.
    """

    def __init__(self, model: "SentenceTransformer | PackedModel", name: str, *, exact: bool, reopenable: bool) -> None:
        width = model.get_embedding_dimension()
        super().__init__(name, TextOptions.of_model(model.prompts), model.prompts, width or 0)
        self.reopenable = reopenable
        self.exact = exact
        self._model: Any = model
        self._packed = not hasattr(model, "eval")  # it was read from its folder
        # A fast tokeniser keeps its padding settings inside, and fails when two threads borrow it.
        self._lock = free_in_children(threading.Lock())
        if not self._packed and not exact:
            _prepare(self._model)

    def _made(
        self, texts: Sequence[str], task: str, prompt: str | None, advance: Callable[[int], object]
    ) -> NDArray[Any]:
        if self._packed:
            return checked(self._model.encode(texts, prompt, advance), len(texts), self._dim, self.name)
        encode = getattr(self._model, f"encode_{task}", self._model.encode)
        rows = CUDA_ROWS if self._model.device.type == "cuda" else CPU_ROWS

        def of(part: list[str]) -> Any:
            with self._lock:
                return encode(part, prompt=prompt, batch_size=rows, show_progress_bar=False)

        return self._in_parts(of, texts, PLAIN_TEXTS_PER_CALL, advance)


def _prepare(model: Any) -> None:
    """Half precision where the device has it, for a float32 model that takes texts padded on the right."""
    import torch

    from funnel.encoding.packed import fast_dtype

    padded = getattr(getattr(model, "tokenizer", None), "padding_side", None)
    if padded == "right" and model.dtype == torch.float32:
        model.to(fast_dtype(torch.device(model.device)))


def checked(values: Any, count: int, dim: int | None, name: str) -> NDArray[Any]:
    """What an encoder gave as an array; EncoderError unless it is [count, dim]."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    width = "d" if dim is None else str(dim)
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] == 0 or (dim and array.shape[1] != dim):
        raise EncoderError(
            f"the encoder {name} gave {array.dtype} of shape {list(array.shape)} for {count} texts, "
            f"expected numbers of shape [{count}, {width}]"
        )
    return array


def kept(values: NDArray[Any], options: TextOptions, name: str, numbers: Numbers) -> NDArray[np.float32]:
    """The dims that are kept of what an encoder gave, as unit rows; EncoderError for rows not finite or all zero."""
    values = values[:, : options.width(values.shape[1], name)]
    try:
        return unit_rows(values, numbers, f"the vectors of the encoder {name}")
    except InputError as error:
        raise EncoderError(
            f"{error}. The rows are the numbers of the texts; with a model, exact=True may help"
        ) from None


def _resolve_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device is {device!r} and torch finds no CUDA here; use device='auto' or 'cpu'")
    return device


def _qualified_name(target: object) -> str:
    owner = target if hasattr(target, "__qualname__") else type(target)
    return f"{getattr(owner, '__module__', '?')}.{getattr(owner, '__qualname__', '?')}"
