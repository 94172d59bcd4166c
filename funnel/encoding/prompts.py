"""What stands before a text when it is encoded, and what is kept of its vector: prompts and widths of models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from funnel.checks import LONGEST_PROMPT, checked_whole
from funnel.errors import InputError

__all__ = ["TextOptions", "TextSettings"]

# What models call their prompts for search. sentence-transformers looks for the first of each list, which it gives to
# every model, empty where the model has none; others it takes where they are asked for by name.
QUERY_NAMES = ("query", "search_query", "web_search_query", "retrieval.query", "Retrieval-query", "s2p_query")
DOCUMENT_NAMES = ("document", "passage", "corpus", "search_document", "retrieval.passage", "Retrieval-document")
# One word: a text that is put before others ends in a colon, a space or a line.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class TextSettings(Protocol):
    """What the settings of an index say of the encoder that it was built with."""

    documents: bool
    encoder: str | None
    encoder_reopenable: bool
    exact_encoding: bool
    query_prompt: str | None
    document_prompt: str | None
    truncate_dim: int | None


@dataclass(frozen=True)
class TextOptions:
    """How an encoder reads texts.

    Attributes:
        query_prompt, document_prompt: Put before every query, every document: a text, "" for none, or the name of a
            prompt of the model; None: the model's own for this, by the names in use.
        truncate_dim: How many of the first dims of each vector are kept, for a model trained for that (Matryoshka);
            None: all.
        kept: Whether they are of a manifest, or were looked up: prompts are texts then. One that a manifest leaves open
            is of before prompts were kept, and is what sentence-transformers chooses.

    Raises:
        InputError: a value is of another kind.
    """

    query_prompt: str | None = None
    document_prompt: str | None = None
    truncate_dim: int | None = None
    kept: bool = False

    def __post_init__(self) -> None:
        for name in ("query_prompt", "document_prompt"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} is {value!r}; expected a text, or the name of a prompt of the model")
            if value is not None and len(value) > LONGEST_PROMPT:
                raise InputError(f"{name} has {len(value):,} characters; expected at most {LONGEST_PROMPT:,}")
        width = self.truncate_dim
        if width is not None:
            checked_whole("truncate_dim", width)

    @classmethod
    def of_manifest(cls, settings: TextSettings) -> TextOptions:
        """Those an index was built with; of an index of vectors alone there are none."""
        if settings.encoder is None:
            return cls()
        return cls(settings.query_prompt, settings.document_prompt, settings.truncate_dim, kept=True)

    @classmethod
    def of_model(cls, prompts: Mapping[str, str | None]) -> TextOptions:
        """The model's own, by the names in use. prompts: all that it has, text by name."""
        return cls(_first(QUERY_NAMES, prompts), _first(DOCUMENT_NAMES, prompts), kept=True)

    def resolved(self, own: TextOptions, prompts: Mapping[str, str | None], name: str) -> TextOptions:
        """The same with every prompt as a text, and what is left open as `own` has it.

        prompts: the model's own, text by name. name: of the encoder, for messages. Raises InputError for the name of
        a prompt that it does not have.
        """
        if self.kept:
            query, document = (_first(names[:1], prompts) for names in (QUERY_NAMES, DOCUMENT_NAMES))
            return replace(
                self,
                query_prompt=query if self.query_prompt is None else self.query_prompt,
                document_prompt=document if self.document_prompt is None else self.document_prompt,
            )
        return TextOptions(
            _text("query_prompt", self.query_prompt, own.query_prompt, prompts, name),
            _text("document_prompt", self.document_prompt, own.document_prompt, prompts, name),
            own.truncate_dim if self.truncate_dim is None else self.truncate_dim,
            kept=True,
        )

    def width(self, dim: int, name: str) -> int:
        """The width of what is kept of vectors [dim]. InputError where they have fewer dims. name: of the encoder."""
        if self.truncate_dim is None:
            return dim
        if self.truncate_dim > dim:
            raise InputError(f"truncate_dim is {self.truncate_dim}, and the encoder {name} gives {dim} dims")
        return self.truncate_dim


def _first(names: Sequence[str], prompts: Mapping[str, str | None]) -> str:
    return next((prompts[name] or "" for name in names if prompts.get(name)), "")


def _text(field: str, given: str | None, own: str | None, prompts: Mapping[str, str | None], name: str) -> str | None:
    if given is None:
        return own
    if given in prompts:
        return prompts[given] or ""
    if _NAME.fullmatch(given):
        has = f"it has {', '.join(prompts)}" if prompts else "it has none"
        raise InputError(
            f"{field} is {given!r}, which is no prompt of the encoder {name} ({has}); give one of its prompts, or a "
            f"text such as {given + ': '!r}"
        )
    return given
