"""The page in a real browser: no complaint, no request, fits the phone, turns dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pc_pipeline.reports.html import write_html

from .browser import Browser, find_chromium
from .samples import NOTES, report_frames

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    frames = report_frames(("baseline", "adverse"))
    return write_html(tmp_path_factory.mktemp("page") / "report.html", frames, NOTES).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium on this machine")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as started:
        yield started


def test_no_complaint_and_no_request(browser: Browser, address: str) -> None:
    browser.resize(1280, 900)
    visit = browser.load(address)
    assert visit.complaints == []
    assert visit.requests == [address]
    assert browser.evaluate("document.querySelectorAll('svg').length") > 30


def test_the_check_itself_notices(browser: Browser, tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('boo'); missing()</script><img src='http://127.0.0.1:9/x.png'>")
    visit = browser.load(bad.as_uri())
    assert len(visit.complaints) >= 2
    assert "http://127.0.0.1:9/x.png" in visit.requests


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out_sideways(browser: Browser, address: str, width: int) -> None:
    browser.resize(width, 800, phone=width < 600)
    browser.load(address)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    narrowest = (
        "Math.min(...[...document.querySelectorAll('tbody th:not([colspan])')].map(th => th.offsetWidth))"
    )
    assert browser.evaluate(narrowest) >= 60  # names are not broken letter by letter


def test_dark_mode_turns_page_and_figures(browser: Browser, address: str) -> None:
    def colours(dark: bool) -> tuple[str, str]:
        browser.resize(1280, 900, dark=dark)
        browser.load(address)
        text = browser.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        return browser.evaluate("getComputedStyle(document.body).backgroundColor"), text

    light, dark = colours(False), colours(True)
    assert light[0] == "rgb(246, 247, 249)"
    assert dark[0] == "rgb(16, 21, 27)"
    assert light[1] != dark[1]


def test_it_prints(browser: Browser, address: str, tmp_path: Path) -> None:
    browser.load(address)
    browser.print_pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
