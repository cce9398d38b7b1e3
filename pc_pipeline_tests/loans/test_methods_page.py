"""docs/methods/loans.md is read and recomputed: the ledger's worked example and the table of scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pc_pipeline.loans.amortisation import amortisation_schedule, payment_cents
from pc_pipeline.loans.ledger import MONEY_COLUMNS, Contracts, walk_ledger
from pc_pipeline.loans.macro_index import MOVE_KINDS
from pc_pipeline.loans.truth import LawConfig, kind_strengths
from pc_pipeline.schemas.states import LOAN_STATE_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "loans.md"


def table(header: str) -> list[list[str]]:
    """Cells of the table whose header row begins so."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_ledger_example():
    rows = table("| month | instalment")
    states = [LOAN_STATE_NAMES.index(row[3]) for row in rows]
    lent, coupon, term, code = (np.array([value]) for value in (1200.0, 0.12, 4, 0))
    terms = Contracts(
        balance_cents=100 * lent,
        payment_cents=payment_cents(lent, coupon, term, code),
        coupon=coupon,
        spread=np.array([np.nan]),
        term=term,
        code=code,
    )
    array = np.array([states], dtype=np.int8)
    index = np.zeros((1, len(states) + 1))
    money, _ = walk_ledger(array, np.array([len(states)]), terms, index, np.array([0]), np.array([1]))
    cash = dict(zip(MONEY_COLUMNS, money, strict=True))
    assert [float(row[4]) for row in rows] == cash["actual_payment"].tolist()
    assert [float(row[5]) for row in rows] == cash["interest_paid"].tolist()
    assert [float(row[6]) for row in rows] == cash["outstanding_balance"].tolist()
    schedule = amortisation_schedule(lent, coupon, term, code)[0]
    assert [float(row[2]) for row in rows[:4]] == schedule[1:].tolist()
    due = [sum(float(part) for part in row[1].split("+")) for row in rows[:4]]
    assert due == pytest.approx(cash["scheduled_payment"][:4].tolist(), abs=1e-9)


def test_the_scales():
    rows = {row[0]: float(row[2]) for row in table("| kind | length")}
    found = dict(zip(MOVE_KINDS, kind_strengths(LawConfig()).tolist(), strict=True))
    assert rows == pytest.approx(found, abs=5e-4)
