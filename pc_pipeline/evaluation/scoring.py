"""The scoring table: models against challengers, and against the truth where it is known.

Here: `score`, `scoring_table`. Not here: how a network arrives at its probabilities
(`training.trajectories.move_probabilities`), the truth (`loans.oracle`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation.challengers import REFERENCE, Challenger, standard_challengers
from pc_pipeline.evaluation.metrics import (
    Estimate,
    accuracy,
    calibration_slope,
    clustered_mean,
    gap_closed,
    log_losses,
)
from pc_pipeline.evaluation.rows import ScoringRows
from pc_pipeline.schemas.states import LoanState

ORACLE: Final = "oracle"
COLUMNS: Final = {
    "model": pl.String,
    "log_loss": pl.Float64,  # nats per loan-month
    "se": pl.Float64,  # clustered by loan
    "late_log_loss": pl.Float64,  # of rows that begin delinquent
    "gap_closed": pl.Float64,  # from the reference table (0) to the oracle (1)
    "gap_closed_se": pl.Float64,
    "gain_on_table": pl.Float64,  # reference log-loss less this one's, nats per loan-month
    "gain_on_table_se": pl.Float64,  # of the paired difference
    "accuracy": pl.Float64,
    "miss_slope": pl.Float64,  # calibration of 'a performing loan misses'
    "n_loan_months": pl.Int64,
}


def score(model: Challenger | np.ndarray, rows: ScoringRows) -> Estimate:
    """Log-loss of a challenger, or of probabilities (N,7), on some rows."""
    return clustered_mean(log_losses(_probabilities(model, rows), rows.happened), rows.cluster)


def scoring_table(
    rows: ScoringRows,
    *,
    training: ScoringRows,
    models: Mapping[str, np.ndarray] | None = None,
    oracle: np.ndarray | None = None,
    challengers: Sequence[Challenger] | None = None,
) -> pl.DataFrame:
    """Challengers, models and oracle on the same rows, worst first.

    Args:
        rows: held-out moves. training: moves the challengers learn from.
        models: name -> probabilities (N,7) on `rows`.
        oracle: (N,7) true probabilities, or None where the truth is unknown; then no gap is reported.
        challengers: unfitted; None takes persistence and the Markov tables. The reference table is
            always among them.

    Returns:
        Columns of `COLUMNS`.

    Raises:
        DataError: probabilities do not fit the rows.
    """
    rivals = list(standard_challengers() if challengers is None else challengers)
    if REFERENCE not in [rival.name for rival in rivals]:
        rivals += [rival for rival in standard_challengers() if rival.name == REFERENCE]
    answers: dict[str, np.ndarray] = {}
    for rival in rivals:
        rival.fit(training)
        answers[rival.name] = rival.probabilities(rows)
    answers |= dict(models or {})
    if oracle is not None:
        answers[ORACLE] = oracle
    losses = {name: log_losses(_fitting(p, rows, name), rows.happened) for name, p in answers.items()}
    table = [_row(name, answers[name], losses, rows) for name in answers]
    return pl.DataFrame(table, schema=COLUMNS).sort("log_loss", descending=True)


def _row(
    name: str, probabilities: np.ndarray, losses: Mapping[str, np.ndarray], rows: ScoringRows
) -> dict[str, Any]:
    mine, reference = losses[name], losses[REFERENCE]
    mean = clustered_mean(mine, rows.cluster)
    gain = clustered_mean(reference - mine, rows.cluster)
    late, performing = rows.from_state > 0, rows.from_state == LoanState.performing
    missed = (rows.happened >= LoanState.dpd30) & (rows.happened <= LoanState.default)
    p_miss = probabilities[:, LoanState.dpd30 : LoanState.prepaid].sum(axis=1)
    closed = gap_closed(mine, reference, losses[ORACLE], rows.cluster) if ORACLE in losses else None
    return {
        "model": name,
        "log_loss": mean.value,
        "se": mean.se,
        "late_log_loss": float(mine[late].mean()) if late.any() else None,
        "gap_closed": None if closed is None else closed.value,
        "gap_closed_se": None if closed is None else closed.se,
        "gain_on_table": gain.value,
        "gain_on_table_se": gain.se,
        "accuracy": accuracy(probabilities, rows.happened),
        "miss_slope": calibration_slope(p_miss[performing], missed[performing])[0],
        "n_loan_months": len(rows),
    }


def _probabilities(model: Challenger | np.ndarray, rows: ScoringRows) -> np.ndarray:
    return model if isinstance(model, np.ndarray) else model.probabilities(rows)


def _fitting(probabilities: np.ndarray, rows: ScoringRows, name: str) -> np.ndarray:
    if probabilities.shape != (len(rows), 7):
        raise DataError(
            "probabilities do not fit the rows", expected=(len(rows), 7), got=probabilities.shape, where=name
        )
    return probabilities
