"""What the code cites is in the methods page; deal pages are those that the deals generate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pc_pipeline.waterfall
from pc_pipeline.waterfall import load_deal
from pc_pipeline.waterfall.deal_page import deal_page, format_page
from pc_pipeline_tests.shared_data import ROOT

METHODS = ROOT / "docs" / "methods" / "waterfall.md"
DEALS = sorted((ROOT / "data" / "deals").glob("*.yaml"))


def test_every_cited_equation_exists() -> None:
    text = METHODS.read_text()
    folder = Path(pc_pipeline.waterfall.__file__).parent
    cited: set[int] = set()
    for module in folder.glob("*.py"):
        for match in re.finditer(r"eq\. \((\d+)\)(?:-\((\d+)\))?(?:, \((\d+)\))?", module.read_text()):
            first, last, other = match.groups()
            cited |= set(range(int(first), int(last or first) + 1)) | ({int(other)} if other else set())
    assert len(cited) > 30
    missing = [number for number in sorted(cited) if not re.search(rf"\({number}\) ", text)]
    assert not missing


@pytest.mark.parametrize("path", DEALS, ids=[path.stem for path in DEALS])
def test_deal_pages_are_up_to_date(path: Path) -> None:
    """Regenerate with `python -m pc_pipeline.waterfall.deal_page data/deals docs/deals`."""
    assert (ROOT / "docs" / "deals" / f"{path.stem}.md").read_text() == deal_page(load_deal(path))


def test_the_format_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "deal-format.md").read_text() == format_page()
