"""The documentation page works without internet; the written page names every address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pc_pipeline.service import create_app
from pc_pipeline_tests.reports.browser import Browser, find_chromium
from pc_pipeline_tests.service.harness import ROOT, Served

PAGE = ROOT / "docs" / "service.md"


def test_the_written_page_names_every_address_and_limit() -> None:
    text = PAGE.read_text()
    for path, methods in create_app().openapi()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in text, (method, path)


def test_the_page_asks_for_nothing_elsewhere(served: Served) -> None:
    page = served.client.get("/docs").text
    assert "//" not in re.sub(r"<!doctype.*?>", "", page)
    for name in re.findall(r'(?:src|href)="(docs/[^"]+)"', page):
        assert served.client.get(f"/{name}").status_code == 200


@pytest.mark.browser
def test_the_page_in_a_browser(served: Served, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with Browser(executable, tmp_path / "profile") as browser:
        visit = browser.load(f"{served.url}/docs")
        browser.evaluate("new Promise(done => setTimeout(done, 1500))")
        assert not visit.complaints
        assert all(address.startswith(served.url) for address in visit.requests)
        shown = browser.evaluate("document.querySelectorAll('.opblock').length")
        operations = sum(len(methods) for methods in create_app().openapi()["paths"].values())
        assert shown == operations
