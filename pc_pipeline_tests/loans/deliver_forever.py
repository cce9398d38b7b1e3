"""A process that delivers new tapes to one store without end, to be killed: see test_ingest_deliveries.

python deliver_forever.py STORE SOURCE FIRST_NUMBER
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from pc_pipeline.core.store import Store
from pc_pipeline.loans.ingest import deliver

ROWS = 3_000


def write_tape(path: Path, number: int) -> None:
    """A tape whose every loan says which delivery it is of (originator_id)."""
    n = pl.int_range(ROWS, eager=True)
    pl.DataFrame(
        {
            "loan_id": n.cast(pl.String),
            "origination_date": ["2023-01-01"] * ROWS,
            "term_months": [36] * ROWS,
            "original_balance": 1000.0 + n,
            "interest_rate": [0.05] * ROWS,
            "amortization_type": ["annuity"] * ROWS,
            "asset_class": ["consumer"] * ROWS,
            "originator_id": [f"delivery {number}"] * ROWS,
        }
    ).write_csv(path)


def main(root: str, source: str, first: int) -> None:
    """Deliver number after number, saying so before each."""
    store, path, number = Store(Path(root)), Path(source) / "tape.csv", first
    while True:
        write_tape(path, number)
        print(number, flush=True)
        deliver(store, path)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
