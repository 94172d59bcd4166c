"""What the settings of a manifest hold: the one schema, checked once when a manifest is read.

A new setting is one line of `Settings`, with a default, so that older indexes open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from funnel.checks import LONGEST_PROMPT
from funnel.errors import InputError

LONGEST_NAME = 4096  # characters: PATH_MAX of Linux, since an encoder may be a folder
LARGEST_SEED = 2**63 - 1  # what torch's generators take
LARGEST_SHOWN = 80  # characters of a bad value in a message

Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]
Prompt = Annotated[str, msgspec.Meta(max_length=LONGEST_PROMPT)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEED)]
Width = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Megabytes = Annotated[float, msgspec.Meta(gt=0, le=1e12)]


class AdaptorNote(msgspec.Struct):
    """What was said of the adaptor when it was chosen."""

    kind: Name = ""
    isometric: bool = False
    why: str = ""


class Candidate(msgspec.Struct):
    """A coarse index that could have been built: its bytes over all rows, and what it took a query on a sample.

    us: microseconds at recall .95 in batch; None where it did not reach that.
    """

    coarse: Name
    width: Width
    held_bytes: Whole
    us: float | None


class Settings(msgspec.Struct, kw_only=True):
    """The settings of one generation.

    coarse_width: None: the first of the ladder. coarse_asked: whether the coarse index or the widths were asked for at
    build. coarse_library: which wrote the coarse index, and its version. query_prompt, document_prompt: None where
    there is no encoder, or the index is of before prompts were kept. own: whether rows are stored as they were given,
    and not adapted. candidates: what was timed before the coarse index was chosen. Keys of other versions are passed
    over.
    """

    coarse: Name
    coarse_settings: dict[Name, Whole]
    documents: bool
    dtype: Name
    encoder: Name | None
    encoder_reopenable: bool
    exact_encoding: bool
    memory_mb: Megabytes | None
    seed: Whole
    adaptor: AdaptorNote
    query_prompt: Prompt | None = None
    document_prompt: Prompt | None = None
    truncate_dim: Width | None = None
    kept: Share | None = None
    float16_kept: Share | None = None
    coarse_width: Width | None = None
    coarse_asked: bool | None = None
    coarse_library: Name | None = None
    own: bool = False
    candidates: list[Candidate] = []


def converted(value: Any, kind: Any, name: str = "") -> Any:
    """A value of JSON as a type. Raises InputError naming the place, what stands there and what was expected."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        said, _, place = str(error).partition(" - at `$")
        for key, number in re.findall(r"\.(\w+)|\[(\d+)\]", place):
            inner = isinstance(value, Mapping | list) and (key in value if key else True)
            value = value[key or int(number)] if inner else value
        # A hostile value can be megabytes long; a message should not.
        text = f"a list of {len(value):,} values" if isinstance(value, list) else repr(value)
        text = text if len(text) <= LARGEST_SHOWN else f"{text[: LARGEST_SHOWN - 3]}..."
        where = f"{name}{place.rstrip('`')}".removeprefix(".") or "the manifest"
        raise InputError(f"{where} is {text}: {said}; restore the file") from None
