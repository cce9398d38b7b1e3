"""Who paid whom, under which step: every payment of a run as rows, and the proof that they tie.

Here: `run_with_ledger` and `reconcile`. Not here: the payments (`steps`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.waterfall.deal import Deal
from pc_pipeline.waterfall.engine import WaterfallResult, run_waterfall

POTS = ("interest", "principal", "combined", "pots")
RECONCILE_TOLERANCE = 1e-9  # of the pool


def run_with_ledger(cash_PTC: Any, deal: Deal, **options: Any) -> tuple[WaterfallResult, pl.DataFrame]:
    """`run_waterfall` and its ledger.

    Args:
        cash_PTC, deal, options: as `run_waterfall` takes them (arrays only). Use few paths: the ledger has
            a row for every payment, path and date that is not zero.

    Returns:
        The result, and rows: path, payment_date, line (order of payment), step, payer, payee, amount.

    Raises:
        SimulationError: the rows do not tie to the result.
    """
    rows: list[tuple[int, int, str, str, str, np.ndarray]] = []

    def write(t: int, step: str, payer: str, payee: str, amount: Any) -> None:
        rows.append((t, len(rows), step, payer, payee, np.asarray(amount, dtype=float)))

    result = run_waterfall(cash_PTC, deal, flow=write, **options)
    n_paths = result.n_paths
    frames = [
        {
            "path": path,
            "payment_date": result.payment_dates[t + 1],
            "line": line,
            "step": step,
            "payer": payer,
            "payee": payee,
            "amount": float(np.broadcast_to(amount, (n_paths,))[path]),
        }
        for t, line, step, payer, payee, amount in rows
        for path in range(n_paths)
        if np.broadcast_to(amount, (n_paths,))[path] != 0.0
    ]
    schema = {"path": pl.Int64, "payment_date": pl.Date, "line": pl.Int64, "step": pl.String}
    schema |= {"payer": pl.String, "payee": pl.String, "amount": pl.Float64}
    ledger = pl.DataFrame(frames, schema=schema).sort("path", "line")
    reconcile(result, ledger)
    return result, ledger


def reconcile(result: WaterfallResult, ledger: pl.DataFrame) -> float:
    """Largest difference between ledger and result, as a share of the pool.

    Every pot pays out what it takes in on each date; every class and fee receives what the result says.

    Raises:
        SimulationError: the difference is more than rounding.
    """
    worst = 0.0
    came = ledger.group_by("path", "payment_date", pl.col("payee").alias("who")).agg(pl.col("amount").sum())
    went = ledger.group_by("path", "payment_date", pl.col("payer").alias("who")).agg(-pl.col("amount").sum())
    pots = pl.concat([came, went]).with_columns(
        pl.when(pl.col("who").is_in(POTS)).then(pl.lit("pots")).otherwise(pl.col("who")).alias("who")
    )
    net = pots.group_by("path", "payment_date", "who").agg(pl.col("amount").sum())
    worst = _largest(net.filter(pl.col("who") == "pots")["amount"])
    received = np.asarray(result.cash)
    for place, name in enumerate(result.tranche_names):
        worst = max(worst, _gap(came, name, received[:, :, place], result))
    for place, name in enumerate(result.names["fee"]):
        worst = max(worst, _gap(came, name, np.asarray(result.fees)[:, :, place], result))
    share = worst / result.pool_balance
    if share > RECONCILE_TOLERANCE:
        raise SimulationError(
            "the ledger does not tie to the result", expected=RECONCILE_TOLERANCE, got=share
        )
    return share


def _largest(values: pl.Series) -> float:
    return 0.0 if values.is_empty() else float(values.abs().max())  # type: ignore[arg-type]


def _gap(came: pl.DataFrame, name: str, expected_PT: np.ndarray, result: WaterfallResult) -> float:
    places = {date: t for t, date in enumerate(result.payment_dates[1:])}
    got = np.zeros_like(expected_PT)
    for row in came.filter(pl.col("who") == name).iter_rows(named=True):
        got[row["path"], places[row["payment_date"]]] += row["amount"]
    return float(np.abs(got - expected_PT).max())
