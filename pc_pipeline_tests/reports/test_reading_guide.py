"""The reading guide covers the page and its worked example is right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pc_pipeline.reports.formats import percent
from pc_pipeline.reports.html import render_html
from pc_pipeline.reports.plots import loss_marks

GUIDE = Path(__file__).parents[2] / "docs" / "reading-the-report.md"


def test_every_word_of_the_glossary_is_explained() -> None:
    page = render_html({}, {})
    glossary = page[page.index('id="glossary"') :]
    terms = re.findall(r"<dt>(.*?)</dt>", glossary)
    assert len(terms) > 8
    guide = GUIDE.read_text().lower()
    assert [term for term in terms if term.lower() not in guide] == []


def test_the_example_by_hand() -> None:
    guide = " ".join(GUIDE.read_text().split())
    found = re.search(r"EL is ([\d.]+) %\. VaR 99 is ([\d.]+) %.*?, ([\d.]+) %\.", guide)
    assert found is not None
    marks = loss_marks(np.arange(1, 101) / 1000.0)
    written = [float(text) / 100 for text in found.groups()]
    assert written == pytest.approx([marks["expected_loss"], marks["var_99"], marks["cvar_99"]])


def test_the_smallest_share_reads_as_promised() -> None:
    assert f"`{percent(1e-6)}`" in GUIDE.read_text()
