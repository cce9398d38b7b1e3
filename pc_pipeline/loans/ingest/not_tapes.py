"""Files that look like loan data and are no tape: what they are, and what they are good for.

Here: `why_no_tape`. Not here: recognising a tape (`read`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pc_pipeline.loans.ingest.files import Part

_MATRIX: Final = "a reference to hold models against, no loans in it"
NOT_TAPES: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (
        (
            "chargedoffPrincipalAmount",
            "otherPrincipalAdjustmentAmount",
            "recoveredAmount",
            "securitizationKey",
        ),
        "loan-months picked because they were charged off, without origination, term, rate or original "
        "balance: good to test signs and sums, but no pool, and no rate of loss follows from it; deliver the "
        "trust's EX-102 files",
    ),
    (
        ("INDPRO", "UNRATE", "FEDFUNDS"),
        "macro history (FRED-MD or FRED-QD): name it with MACRO=..., or --macro",
    ),
    (("Scenario Name", "Date"), "a macro scenario of the Federal Reserve: pc add-scenario, or MACRO=..."),
    (("From States", "To States", "Periods", "Tenor"), f"published rating migrations by tenor: {_MATRIX}"),
    (tuple("01234567"), f"a published rating migration matrix without state names: {_MATRIX}"),
    (("from", "Curr", "1m", "2m", "3m", "CO", "PP"), f"a published monthly roll matrix: {_MATRIX}"),
    (
        ("table", "quarter", "series", "value_percent"),
        f"household debt by delinquency status and quarterly flows of a whole country: {_MATRIX}",
    ),
    (
        ("origination_years", "grade", "loans", "still_current"),
        f"counts of outcomes by grade: {_MATRIX}",
    ),
    (
        ("fiscal_year", "recovery_rate_pct_of_purchase_amount"),
        "recovery rates of a programme by year: a reference for severities, no loans in it",
    ),
    (("deal", "class", "initial_balance", "coupon_percent"), "the classes of deals: terms for a deal file"),
    (
        ("deal", "class", "beginning_balance", "ending_balance"),
        "servicer reports of classes: a waterfall can be held to them, no loans in them",
    ),
    (
        ("deal", "pool_begin", "pool_end"),
        "servicer reports of a pool as a whole: a waterfall can be held to them, no loans in them",
    ),
)


def why_no_tape(parts: Sequence[Part]) -> str:
    """What each file is that no adapter reads, as far as that is known; '' where nothing is."""
    found = {
        part.path.name: what
        for part in parts
        for columns, what in reversed(NOT_TAPES)  # the first that fits stays
        if part.has(columns)
    }
    if len(found) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{name}: {what}" for name, what in found.items())
