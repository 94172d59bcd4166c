import base64
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from funnel.errors import InputError
from funnel.reports.pages import PNG_SIGNATURE, html_page
from tests.funnel.reports.samples import sample_results

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects addresses and cells, and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: Any) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: Any) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_page_holds_the_numbers() -> None:
    page = Page(html_page(sample_results()))
    assert {"recall 0.95", "0.9571", "15×", "9.4×", "64 → 128 → 384", "214.5", "200,000"} <= set(page.cells)
    assert "certified on 3,000 real queries" in page.cells


def test_nothing_outside_the_page_is_named() -> None:
    text = html_page(sample_results(), [("a figure", PNG_SIGNATURE + b"rest")])
    assert "<figcaption>a figure</figcaption>" in text
    assert Page(text).addresses == ["data:image/png;base64," + base64.b64encode(PNG_SIGNATURE + b"rest").decode()]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link", text)


def test_every_text_is_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&"
    results = sample_results()
    results["title"] = results["created"] = evil
    for facts in (results["index"], results["machine"]):
        for key, value in facts.items():
            if isinstance(value, str):
                facts[key] = evil
    results["funnel"][0]["plan"] = evil
    text = html_page(results, [(evil, PNG_SIGNATURE)])
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;") == 17
    Page(text)


def test_an_uncertified_page_does_not_look_certified() -> None:
    results = sample_results()
    assert 'class="note certified"' in html_page(results)
    results["funnel"][2]["certified"] = False
    assert 'class="note certified"' not in html_page(results)
    assert 'class="note certified"' not in html_page({**sample_results(), "funnel": []})


def test_a_figure_that_is_no_png_is_refused() -> None:
    with pytest.raises(InputError, match="'a caption' is not a PNG"):
        html_page(sample_results(), [("a caption", b"<svg>")])
