"""What the settings of a manifest may hold: the one schema, checked once when an index is opened.

A new setting is one line of `Settings`, with a default, so that older indexes open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from funnel.encoding.prompts import LONGEST_PROMPT
from funnel.errors import DamagedIndexError
from funnel.storage import Manifest
from indexes import CoarseIndexError, family

__all__ = ["Settings", "check_order", "check_settings"]

LONGEST_NAME = 4096  # characters: PATH_MAX of Linux, since an encoder may be a folder
LARGEST_SEED = 2**63 - 1  # what torch's generators take
LARGEST_SHOWN = 80  # characters of a bad value in a message

Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]
Prompt = Annotated[str, msgspec.Meta(max_length=LONGEST_PROMPT)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEED)]
Width = Annotated[int, msgspec.Meta(ge=1)]


class AdaptorNote(msgspec.Struct):
    """What was said of the adaptor when it was chosen."""

    kind: Name = ""
    isometric: bool = False
    why: str = ""


class Settings(msgspec.Struct):
    """The settings of one generation. Keys that are not named here are left as they are."""

    coarse: Name
    coarse_settings: dict[Name, Whole]
    documents: bool
    dtype: Name
    encoder: Name | None
    encoder_reopenable: bool
    exact_encoding: bool
    memory_mb: Annotated[float, msgspec.Meta(gt=0, le=1e12)] | None
    seed: Whole
    adaptor: AdaptorNote
    query_prompt: Prompt | None = None  # None: the index is of before prompts were kept, or there is no encoder
    document_prompt: Prompt | None = None
    truncate_dim: Width | None = None
    kept: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    float16_kept: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    coarse_width: Width | None = None
    coarse_asked: bool = False
    coarse_library: Name | None = None
    faiss: Name | None = None  # of the first indexes, in place of coarse_library


def check_settings(manifest: Manifest, path: object) -> None:
    """Check every setting of a manifest, before anything is made from it. path: of the index, for messages.

    Raises DamagedIndexError naming the file, the key, the value and what was expected.
    """
    file = f"generations/{manifest.generation:06d}.json in {path}"
    try:
        settings = msgspec.convert(dict(manifest.settings), Settings)
    except (msgspec.ValidationError, RecursionError) as error:
        said, _, place = str(error).partition(" - at `$")
        key = place.rstrip("`").lstrip(".")
        value = f" is {_short(_at(manifest.settings, key))}" if key else ""
        raise DamagedIndexError(f"{file}: settings{'.' if key else ''}{key}{value}: {said}; restore the file") from None
    width = settings.coarse_width
    known = [*manifest.ladder, manifest.d]
    if width is not None and width not in known:
        raise DamagedIndexError(f"{file}: settings.coarse_width is {width}, expected one of {known}; restore the file")
    # A segment that is searched exactly has no coarse index; those that have one are each as large as its settings.
    rows = min((part.rows for part in manifest.segments if not part.details.get("exact")), default=0)
    try:
        family(settings.coarse).bound_settings(settings.coarse_settings, rows)
    except CoarseIndexError as error:
        raise DamagedIndexError(f"{file}: settings.coarse_settings: {error}; restore the file") from error


def check_order(order: NDArray[np.int64], rows: int, segment: str) -> None:
    """Check that the order (int64 [rows]) of a segment is a permutation. Raises DamagedIndexError."""
    outside = rows > 0 and (order.min() < 0 or order.max() >= rows)
    if outside or np.bincount(order, minlength=rows).max(initial=0) > 1:
        raise DamagedIndexError(
            f"order.npy of segment {segment} is no permutation of 0 to {rows - 1}; build the index again"
        )


def _at(settings: Mapping[str, Any], key: str) -> object:
    value: object = settings
    for step in key.split("."):
        value = value.get(step) if isinstance(value, Mapping) else value
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LARGEST_SHOWN else f"{text[: LARGEST_SHOWN - 3]}..."
