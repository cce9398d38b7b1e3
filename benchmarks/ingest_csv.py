"""Ingest of a large CSV panel against polars' own read of the same file.

    python benchmarks/ingest_csv.py [--rows 10000000] [--rounds 7] [--out benchmarks/results]

A B A B ...: polars.read_csv of the panel, then read_tape of the folder (read, type, screen every column and
identity, order, quarantine). The file holds known bad rows; before any time is taken, ingest must find
exactly those and keep exactly the others. Reported: the median of the rounds' ratios, and peak memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
from machine import machine_line, write_result

from pc_pipeline.core.rng import stream
from pc_pipeline.loans.ingest import read_tape
from pc_pipeline.schemas.tables import columns

NOTE = """# Ingest of a CSV panel

{machine}

{rows:,} rows x {columns} columns, {gigabytes:.2f} GB, {n_bad} bad rows (all found, all others kept).
{rounds} rounds, polars and ingest in turn, medians:

| | seconds |
|---|---|
| polars.read_csv of the panel | {polars:.2f} |
| read_tape of the folder | {ingest:.2f} ({speed:.2f} M rows/s) |

Speed against polars' own read: **{ratio:.2f}** (rounds {low:.2f} to {high:.2f}).
Peak memory of both: {peak:.1f} GB.

The limit: the file is parsed once at polars' speed (about half of the time); what remains is hashing the
bytes (in parallel), about sixty range and identity rules that each read a column once, and one filter that
copies the good rows. Memory is that of the typed frame and one copy of it.
"""
N_MONTHS = 50
N_BAD = 100


def write_pool(folder: Path, n_rows: int) -> None:
    """A tape and a full canonical panel of n_rows, N_BAD of them with a negative balance."""
    n_loans = n_rows // N_MONTHS
    numbers = pl.int_range(n_loans, eager=True)
    amount = pl.Series(stream(1, "bench", "amount").uniform(5_000, 500_000, n_loans)).round(2)
    loans = pl.DataFrame(
        {
            "loan_id": "L" + numbers.cast(pl.String).str.zfill(9),
            "origination_date": pl.repeat(date(2019, 1, 1), n_loans, eager=True),
            "term_months": pl.repeat(120, n_loans, eager=True),
            "original_balance": amount,
            "interest_rate": pl.Series(stream(1, "bench", "rate").uniform(0.02, 0.12, n_loans)).round(5),
            "amortization_type": pl.repeat("annuity", n_loans, eager=True),
            "asset_class": pl.repeat("consumer", n_loans, eager=True),
        }
    )
    loans.write_csv(folder / "loans.csv")
    months = pl.DataFrame({"k": pl.int_range(N_MONTHS, eager=True)}).with_columns(
        pl.date(2019, 2, 1).dt.offset_by(pl.format("{}mo", "k")).alias("reporting_month")
    )
    step = (pl.col("original_balance") / 120).round(2)
    panel = (
        loans.select("loan_id", "asset_class", "original_balance")
        .join(months, how="cross")
        .select(
            "loan_id",
            "reporting_month",
            pl.lit("observed").alias("scenario"),
            pl.lit(0).alias("macro_path_id"),
            "asset_class",
            pl.lit(date(2019, 1, 1)).alias("vintage_month"),
            "original_balance",
            pl.lit(0).alias("loan_state"),
            pl.lit(0).alias("days_past_due"),
            (pl.col("k") + 1).alias("months_in_state"),
            (step * 1.5).round(2).alias("scheduled_payment"),
            (step * 1.5).round(2).alias("actual_payment"),
            ((step * 1.5).round(2) - step).round(2).alias("interest_paid"),
            step.alias("principal_paid"),
            pl.lit(0.0).alias("prepayment_amount"),
            pl.lit(0.0).alias("charge_off_amount"),
            (pl.col("original_balance") - step * (pl.col("k") + 1)).round(2).alias("outstanding_balance"),
            pl.lit(0.0).alias("recovery_amount"),
            pl.lit(0.0).alias("loss_amount"),
            pl.lit(None, pl.Float64).alias("ltv_current"),
            pl.lit(None, pl.Float64).alias("rate_incentive"),
            pl.col("reporting_month").dt.month_end().dt.weekday().alias("month_end_weekday"),
        )
    )
    bad = np.sort(stream(1, "bench", "bad").choice(panel.height, N_BAD, replace=False))
    marked = pl.int_range(pl.len()).is_in(bad.tolist())
    balance = pl.when(marked).then(-1.0).otherwise("outstanding_balance").alias("outstanding_balance")
    panel.with_columns(balance).select(columns("loan_panel")).write_csv(folder / "panel.csv")


def measure(folder: Path, n_rows: int, rounds: int) -> str:
    """Check the result once, then time polars and ingest in turn; the note as text."""
    result = read_tape(folder)
    assert result.panel.height == n_rows - N_BAD, result.panel.height
    assert result.quarantine.height == N_BAD
    del result
    polars_s, ingest_s = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        pl.read_csv(folder / "panel.csv")
        polars_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        read_tape(folder)
        ingest_s.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(polars_s, ingest_s, strict=True)]
    size = (folder / "panel.csv").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return NOTE.format(
        machine=machine_line(),
        rows=n_rows,
        columns=len(columns("loan_panel")),
        gigabytes=size / 1e9,
        rounds=rounds,
        n_bad=N_BAD,
        polars=statistics.median(polars_s),
        ingest=statistics.median(ingest_s),
        speed=n_rows / statistics.median(ingest_s) / 1e6,
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        peak=peak,
    )


def main() -> None:
    """Write the pool to a temporary folder, measure, keep the note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    n_rows = options.rows // N_MONTHS * N_MONTHS
    with tempfile.TemporaryDirectory() as folder:
        write_pool(Path(folder), n_rows)
        write_result(options.out, "ingest-csv", measure(Path(folder), n_rows, options.rounds))


if __name__ == "__main__":
    main()
