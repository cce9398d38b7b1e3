"""Scoring against the truth: log-loss of the exact law on a generated panel, move by move.

regret of a model = its log-loss - the oracle's, nats per loan-month. Here: `oracle_rows` gives the exact
probabilities of each observed move, so any model can be scored on the same rows. Not here: models' scores
(`evaluation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.macro_index import MacroPaths, macro_paths
from pc_pipeline.loans.panel_rows import final_months, panel_moves
from pc_pipeline.loans.truth import LawConfig, TrueLaw


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleRows:
    """The exact law beside each observed move; N moves.

    Attributes:
        keys: N rows of scenario, macro_path_id, loan_id, reporting_month (of arrival).
        from_state, to_state, months_since_miss, is_final: (N,). probabilities: (N, 7) of the law.
    """

    keys: pl.DataFrame
    from_state: np.ndarray
    to_state: np.ndarray
    months_since_miss: np.ndarray
    is_final: np.ndarray
    probabilities: np.ndarray

    @property
    def log_losses(self) -> np.ndarray:
        """(N,) nats: -log of the probability of what happened."""
        return -np.log(self.probabilities[np.arange(self.to_state.size), self.to_state])

    @property
    def log_loss(self) -> float:
        """Mean nats per loan-month."""
        return float(self.log_losses.mean())


def oracle_rows(
    panel: Any, loans: Any, macro: Any, *, world_seed: int = 0, config: LawConfig | None = None
) -> OracleRows:
    """Exact probabilities of every move of a generated panel.

    Args:
        panel, loans: from one generator. macro: the `macro_scenarios` rows it was generated along.
        world_seed, config: of that generator.

    Raises:
        DataError: loans or macro paths are missing, or the panel holds no move.
    """
    tape = to_polars(loans, ["loan_id", "asset_class"], "loans")
    paths = macro if isinstance(macro, MacroPaths) else macro_paths(macro)
    moves = panel_moves(panel)
    used = moves.is_move
    if not used.any():
        raise DataError("the panel holds no move", where="panel")
    frame = moves.frame.select("scenario", "macro_path_id", "loan_id", "reporting_month").filter(used)
    is_final = moves.month[used] >= final_months(frame, tape)
    numbered = tape.select("loan_id").with_row_index("loan_row")
    loan_row = frame.select("loan_id").join(numbered, on="loan_id", how="left", maintain_order="left")[
        "loan_row"
    ]
    probabilities = TrueLaw(world_seed=world_seed, config=config or LawConfig()).rows(
        loans=tape,
        paths=paths,
        loan_row=loan_row.to_numpy().astype(np.int64),
        path_row=paths.rows_of(frame),
        month=moves.month[used].astype(np.int64),
        from_state=moves.from_state[used].astype(np.int64),
        months_since_miss=moves.months_since_miss[used].astype(np.int64),
        is_final=is_final,
    )
    return OracleRows(
        keys=frame,
        from_state=moves.from_state[used].astype(np.int64),
        to_state=moves.state[used].astype(np.int64),
        months_since_miss=moves.months_since_miss[used].astype(np.int64),
        is_final=is_final,
        probabilities=probabilities,
    )


def oracle_log_loss(
    panel: Any, loans: Any, macro: Any, *, world_seed: int = 0, config: LawConfig | None = None
) -> float:
    """Mean log-loss of the exact law, nats per loan-month: what no model can beat but by luck."""
    return oracle_rows(panel, loans, macro, world_seed=world_seed, config=config).log_loss
