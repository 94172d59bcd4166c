"""Errors of the coarse indexes and the vector store.

They stand beside `funnel.errors`, because `indexes` does not know `funnel`.
"""


class CoarseIndexError(ValueError):
    """A coarse index or a vector file cannot do what was asked: the message says what and why."""


class MissingBackendError(ImportError):
    """The library behind a coarse index is not installed: the message says how to install it."""
