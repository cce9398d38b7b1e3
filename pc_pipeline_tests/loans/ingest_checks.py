"""Shared by the ingest tests: the contract of a result, and its matrix of monthly moves."""

from __future__ import annotations

import polars as pl

from pc_pipeline.loans.identities import balance_breaches, cash_breaches, loss_breaches, terminal_breaches
from pc_pipeline.loans.ingest import IngestResult
from pc_pipeline.schemas.tables import failures


def assert_contract(result: IngestResult) -> None:
    """Every table keeps its contract, and every row of the panel its identities."""
    for table, frame in (
        ("loan_tape", result.loans),
        ("loan_panel", result.panel),
        ("recoveries", result.recoveries),
        ("quarantine", result.quarantine),
    ):
        assert failures(table, frame).is_empty(), failures(table, frame)
    for identity in (balance_breaches, cash_breaches, loss_breaches, terminal_breaches):
        assert identity(result.panel).is_empty(), identity(result.panel)


def moves(panel: pl.DataFrame) -> dict[tuple[int, int], int]:
    """Counts of (from, to) over consecutive months."""
    ordered = panel.sort("loan_id", "reporting_month").with_columns(
        pl.col("loan_state").shift(-1).over("loan_id").alias("to"),
        pl.col("reporting_month").shift(-1).over("loan_id").alias("next"),
    )
    pairs = ordered.filter(pl.col("next") == pl.col("reporting_month").dt.offset_by("1mo"))
    return {(a, b): n for a, b, n in pairs.group_by("loan_state", "to").len().iter_rows()}


def percent(panel: pl.DataFrame) -> dict[tuple[int, int], float]:
    """`moves` in percent of the row, two decimals."""
    counted = moves(panel)
    totals = {state: sum(n for (a, _), n in counted.items() if a == state) for state in range(4)}
    return {(a, b): round(100 * n / totals[a], 2) for (a, b), n in counted.items()}
