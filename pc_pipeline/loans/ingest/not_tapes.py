"""Files that look like loan data and are no tape: what they are, and what they are good for.

Here: `why_no_tape`. Not here: recognising a tape (`read`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pc_pipeline.loans.ingest.files import Part

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
)


def why_no_tape(parts: Sequence[Part]) -> str:
    """What a delivery is that no adapter reads, where that is known; '' otherwise."""
    for columns, what in NOT_TAPES:
        if any(part.has(columns) for part in parts):
            return what
    return ""
