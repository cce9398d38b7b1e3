"""Transition counts: the compiled pass against DuckDB window queries, 1 M to 60 M rows.

    python benchmarks/transition_counts.py [--full] [--out benchmarks/results]

The panel is as the store gives it back, in chunks. `extract_transitions` against a bare DuckDB window query
(lag over loan and path, months adjacent; no rule for duplicates or origination), both over text loan ids and
both over integer ones; DuckDB partitions by the integer alone, its best case. Checked first: the compiled
pass equals `transition_table`, the full query in DuckDB, on the smallest size. Interleaved rounds, median of
the ratios. DuckDB uses all cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import duckdb
import numpy as np
import polars as pl

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.store import Store
from pc_pipeline.loans.panel_store import PANEL_FORMAT
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.transitions import extract_transitions, transition_table
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table

COLUMNS = ["scenario", "macro_path_id", "loan_id", "reporting_month", "vintage_month", "loan_state"]
SIZES = {37_000: 7, 370_000: 7}
FULL_SIZES = {2_200_000: 3}  # loans -> rounds
_WINDOW = """
SELECT reporting_month, last_state, loan_state, count(*) AS n_moves
FROM (SELECT *, lag(loan_state) OVER loan AS last_state, lag(reporting_month) OVER loan AS last_month
      FROM panel WINDOW loan AS (PARTITION BY {key} ORDER BY reporting_month))
WHERE last_month + INTERVAL 1 MONTH = reporting_month AND last_state < 4
GROUP BY ALL
"""


def panel_of(n_loans: int) -> tuple[pl.DataFrame, LoanTapeGenerator]:
    """The columns a count needs, of a streamed portfolio."""
    macro = macro_table(MacroScenarioGenerator(n_months=60, start_date="2024-01-01"), "baseline", 8)
    generator = LoanTapeGenerator(n_loans=n_loans, random_seed=1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        chunks = (book.panel for book in generator.stream_scenario(macro))
        store.write_table("loan_panel", chunks, form=PANEL_FORMAT)
        return store.scan_table("loan_panel").select(*COLUMNS, "asset_class").collect(), generator


def window(frame: pl.DataFrame, key: str) -> int:
    """Moves found by a bare window query."""
    with duckdb.connect(":memory:") as connection:
        connection.register("panel", frame.to_arrow())
        return int(connection.sql(_WINDOW.format(key=key)).pl()["n_moves"].sum())


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(n_loans: int, rounds: int) -> str:
    """One row of the table."""
    panel, generator = panel_of(n_loans)
    if n_loans == min(SIZES):
        table = transition_table(panel, generator.generate_static_features())
        if int(table["n_moves"].sum()) != int(extract_transitions(panel).sum()):
            raise SystemExit("DuckDB and the compiled pass disagree: no speed is worth quoting")
    is_new = panel["loan_id"] != panel["loan_id"].shift(1, fill_value="")
    coded = panel.select("reporting_month", pl.col("loan_state").cast(pl.Int8)).with_columns(
        loan=is_new.cast(pl.Int32).cum_sum()
    )
    strings = panel.select("scenario", "macro_path_id", "loan_id", "reporting_month", "loan_state")
    if window(strings.head(50_000), "scenario, macro_path_id, loan_id") != window(coded.head(50_000), "loan"):
        raise SystemExit("the two window queries disagree")
    integers = panel.with_columns(loan_id=coded["loan"].cast(pl.Int64))
    if not np.array_equal(extract_transitions(integers), extract_transitions(panel)):
        raise SystemExit("text and integer keys disagree")
    seconds = np.array(
        [
            [
                timed(lambda: extract_transitions(panel)),
                timed(lambda: window(strings, "scenario, macro_path_id, loan_id")),
                timed(lambda: extract_transitions(integers)),
                timed(lambda: window(coded, "loan")),
            ]
            for _ in range(rounds)
        ]
    )
    speeds = [panel.height / statistics.median(column) / 1e6 for column in seconds.T]
    ratios = [statistics.median(seconds[:, place + 1] / seconds[:, place]) for place in (0, 2)]
    return (
        f"| {panel.height:,} | {panel['loan_id'].n_chunks()} | {speeds[0]:.1f} | {speeds[1]:.2f} | "
        f"{ratios[0]:.1f} | "
        f"{speeds[2]:.1f} | {speeds[3]:.2f} | {ratios[1]:.1f} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true", help="60 M rows too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    lines = [
        "# Transition counts",
        "",
        machine_line(),
        "",
        "M rows/s, medians; ratios of interleaved rounds.",
        "",
    ]
    lines += [
        "| rows | chunks | text keys: compiled | window | ratio | integer keys: compiled | window | ratio |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [measure(*size) for size in (SIZES | FULL_SIZES if options.full else SIZES).items()]
    write_result(options.out, "transition_counts", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
