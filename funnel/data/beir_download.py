"""BEIR's public data sets, fetched by beir's own download."""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from funnel.errors import InputError, MissingPackageError

__all__ = ["BEIR_NAMES", "beir_folder"]

# Where the README of beir 2.2 says its data sets lie, and those that its table offers for download as one folder.
URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"
BEIR_NAMES = (
    "arguana", "climate-fever", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus", "nq", "quora",
    "scidocs", "scifact", "trec-covid", "webis-touche2020",
)  # fmt: skip
CORPUS_FILE = "corpus.jsonl"
# Seconds to connect, and of silence in between: a server that says nothing for so long is not going to.
TIMEOUT = (10.0, 30.0)


def beir_folder(name: str, folder: str | os.PathLike[str]) -> Path:
    """The folder of a BEIR data set, downloaded where it is not there yet.

    Args:
        name: one of BEIR_NAMES.
        folder: where data sets are kept; the set comes to lie in `folder/name`.

    Raises:
        InputError: the name is not known; or the set cannot be fetched, with what to do then.
        MissingPackageError: beir is not installed.
    """
    if name not in BEIR_NAMES:
        raise InputError(f"{name!r} is no BEIR set that can be downloaded; choose one of {', '.join(BEIR_NAMES)}")
    there = Path(folder) / name
    if (there / CORPUS_FILE).is_file():
        return there
    try:
        from beir import util
    except ImportError as error:
        raise MissingPackageError(
            "downloading BEIR sets needs beir; install it with: pip install 'funnel-retrieval[beir]'"
        ) from error
    url = URL.format(name=name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    # beir takes any file that lies under the name for a whole one, so a failed download must leave none.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        try:
            with _impatient(util):
                fetched = Path(util.download_and_unzip(url, temporary))
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                f"the BEIR set {name!r} could not be downloaded from {url} ({_said(error)}); check the network, or "
                f"fetch and unzip it elsewhere and give its folder with --data, or put it at {there}"
            ) from error
        if not (fetched / CORPUS_FILE).is_file():
            raise InputError(f"what {url} gave for {name!r} holds no {CORPUS_FILE}; give the set's folder with --data")
        os.replace(fetched, there)
    return there


@contextmanager
def _impatient(util: Any) -> Iterator[None]:
    """Have beir's download give up on a silent server: it asks without a timeout, and takes none."""
    requests = util.requests
    util.requests = SimpleNamespace(get=functools.partial(requests.get, timeout=TIMEOUT))
    try:
        yield
    finally:
        util.requests = requests


def _said(error: BaseException) -> str:
    """The first cause of an error, which says what happened in one line."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__
