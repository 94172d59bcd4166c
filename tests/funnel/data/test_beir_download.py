import io
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import beir.util
import pytest
import requests

from funnel.data import beir_download
from funnel.data.beir_download import BEIR_NAMES, beir_folder
from funnel.errors import InputError, MissingPackageError


def zipped(name: str, *files: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for file in files:
            archive.writestr(f"{name}/{file}", '{"_id": "a", "text": "one"}\n')
    return held.getvalue()


class Site(BaseHTTPRequestHandler):
    """Gives /NAME.zip, or what is set to be given in its place."""

    given: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        data = self.given.get(self.path.strip("/"))
        self.send_response(404 if data is None else 200)
        self.end_headers()
        self.wfile.write(data or b"<html>not found</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Site]]:
    """A site on this machine in place of BEIR's own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Site.given, Site.asked = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(beir_download, "URL", f"http://127.0.0.1:{server.server_port}/{{name}}.zip")
        yield Site
        server.shutdown()
        thread.join()


def test_a_set_is_downloaded_once(site: type[Site], tmp_path: Path) -> None:
    site.given["nfcorpus.zip"] = zipped("nfcorpus", "corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    folder = beir_folder("nfcorpus", tmp_path / "sets")
    assert folder == tmp_path / "sets" / "nfcorpus"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"corpus.jsonl", "queries.jsonl", "qrels/test.tsv"}
    assert beir_folder("nfcorpus", tmp_path / "sets") == folder
    assert site.asked == ["/nfcorpus.zip"]
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["nfcorpus"]  # nothing half done is left


def test_a_failed_download_leaves_nothing_and_can_be_tried_again(site: type[Site], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'fiqa' could not be downloaded from http.*zip.*--data, or put it at"):
        beir_folder("fiqa", tmp_path)
    whole = zipped("fiqa", "corpus.jsonl")
    site.given["fiqa.zip"] = whole[: len(whole) // 2]
    with pytest.raises(InputError, match="'fiqa' could not be downloaded"):
        beir_folder("fiqa", tmp_path)
    site.given["fiqa.zip"] = zipped("fiqa", "something.txt")
    with pytest.raises(InputError, match=r"gave for 'fiqa' holds no corpus\.jsonl"):
        beir_folder("fiqa", tmp_path)
    assert list(tmp_path.iterdir()) == []
    site.given["fiqa.zip"] = whole
    assert (beir_folder("fiqa", tmp_path) / "corpus.jsonl").is_file()


def test_a_closed_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(beir_download, "URL", "http://127.0.0.1:1/{name}.zip")  # nothing listens on port 1
    with pytest.raises(InputError, match="'nfcorpus' could not be downloaded") as raised:
        beir_folder("nfcorpus", tmp_path)
    assert "\n" not in str(raised.value)
    assert "refused" in str(raised.value)
    assert str(tmp_path / "nfcorpus") in str(raised.value)


def test_a_silent_server_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(beir_download, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and never answers
        monkeypatch.setattr(beir_download, "URL", f"http://127.0.0.1:{server.getsockname()[1]}/{{name}}.zip")
        with pytest.raises(InputError, match=r"'nfcorpus' could not be downloaded .*timed out"):
            beir_folder("nfcorpus", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert beir.util.requests is requests  # and beir is as it was


def test_a_set_that_lies_there_needs_no_network(tmp_path: Path, site: type[Site]) -> None:
    (tmp_path / "scifact").mkdir()
    (tmp_path / "scifact" / "corpus.jsonl").write_text("{}\n")
    assert beir_folder("scifact", tmp_path) == tmp_path / "scifact"
    assert site.asked == []


@pytest.mark.parametrize("name", ["nosuch", "../scifact", "", "bioasq"])
def test_other_names_are_refused(name: str, tmp_path: Path, site: type[Site]) -> None:
    with pytest.raises(InputError, match="is no BEIR set that can be downloaded; choose one of arguana"):
        beir_folder(name, tmp_path)
    assert site.asked == []


def test_the_address_is_that_of_beirs_readme() -> None:
    from importlib.metadata import metadata

    readme = metadata("beir").get_payload() or metadata("beir")["Description"]  # type: ignore[attr-defined]
    for name in BEIR_NAMES:
        assert beir_download.URL.format(name=name) in readme


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "beir", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'funnel-retrieval\[beir\]'"):
        beir_folder("nfcorpus", tmp_path)
