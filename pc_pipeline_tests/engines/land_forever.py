"""A process that lands new tapes in one store without end, to be killed: see test_killed.

python land_forever.py STORE SOURCE FIRST_NUMBER
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from pc_pipeline.core.store import Store
from pc_pipeline.engines import stages

ROWS = 1_000


def write_tape(folder: Path, number: int) -> Path:
    """A tape and one month of panel whose every loan says which delivery it is of (original balance)."""
    place = folder / f"tape-{number}"
    place.mkdir(parents=True, exist_ok=True)
    ids = pl.int_range(ROWS, eager=True).cast(pl.String)
    pl.DataFrame(
        {
            "loan_id": ids,
            "origination_date": ["2023-01-01"] * ROWS,
            "term_months": [36] * ROWS,
            "original_balance": [1000.0 + number] * ROWS,
            "interest_rate": [0.05] * ROWS,
            "amortization_type": ["annuity"] * ROWS,
            "asset_class": ["consumer"] * ROWS,
        }
    ).write_csv(place / "loans.csv")
    pl.DataFrame(
        {
            "loan_id": ids,
            "reporting_month": ["2023-02-01"] * ROWS,
            "loan_state": [0] * ROWS,
            "outstanding_balance": [990.0 + number] * ROWS,
        }
    ).write_csv(place / "panel.csv")
    return place


def main(root: str, source: str, first: int) -> None:
    """Land number after number, saying so before each."""
    store, number = Store(Path(root)), first
    while True:
        place = write_tape(Path(source), number)
        print(number, flush=True)
        stages.land(store, str(place), pool="killed")
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
