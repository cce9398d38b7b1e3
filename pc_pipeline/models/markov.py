"""Markov chains of loan states: the baseline, and the tables every network must beat.

Here: counting, intervals, simulation, and tables by class, age, maturity and recency of the last miss.
Not here: networks; scores against each other (`evaluation`).

    P(j | i, group) = (n_ij + w p_ij) / (n_i + w),   p the same row over all groups
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import narwhals as nw
import numpy as np
import polars as pl
import torch
from scipy.stats import beta

from pc_pipeline.core.errors import ConfigError, DataError, ModelError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.core.rng import stream
from pc_pipeline.models.checkpoint import register
from pc_pipeline.schemas.states import N_LIVING, N_STATES
from pc_pipeline.schemas.units import ASSET_CLASSES

AGE_EDGES: Final = (0, 3, 6, 12, 18, 24, 36, 48, 60, 84, 120)  # lower edges, months; the last is open
RECENCY_EDGES: Final = (0, 1, 2, 3, 4, 6, 9, 12, 18, 24)
GROUP_SIZES: Final = {
    "asset_class": len(ASSET_CLASSES),
    "is_final": 2,
    "age": len(AGE_EDGES),
    "since_miss": len(RECENCY_EDGES) + 1,
}
_PATH_KEYS: Final = ("scenario", "macro_path_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkovConfig:
    """What a chain distinguishes.

    Attributes:
        n_states: states 0..n-1.
        by: any of 'asset_class', 'is_final', 'age', 'since_miss'; empty for one matrix.
        shrinkage: weight w of the pooled row in each group's row, in moves.
    """

    n_states: int = N_STATES
    by: tuple[str, ...] = ()
    shrinkage: float = 5.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.by if name not in GROUP_SIZES]
        if unknown or len(set(self.by)) != len(self.by):
            raise ConfigError("unknown or repeated grouping", expected=", ".join(GROUP_SIZES), got=self.by)
        if self.n_states < 2 or self.shrinkage < 0:
            raise ConfigError(
                "out of range",
                expected="n_states >= 2, shrinkage >= 0",
                got=f"{self.n_states}, {self.shrinkage}",
            )


@register(MarkovConfig)
class MarkovTransitionModel:
    """Homogeneous Markov chain, or one per group of loans.

    Args:
        n_states: number of states, or a whole `MarkovConfig`.
        by, shrinkage: see `MarkovConfig`.
    """

    def __init__(
        self, n_states: int | MarkovConfig = N_STATES, by: Sequence[str] = (), shrinkage: float = 5.0
    ) -> None:
        if isinstance(n_states, MarkovConfig):
            self.config = n_states
        else:
            self.config = MarkovConfig(n_states=n_states, by=tuple(by), shrinkage=shrinkage)
        sizes = tuple(GROUP_SIZES[name] for name in self.config.by)
        self.counts = np.zeros((*sizes, self.config.n_states, self.config.n_states))

    # ---- learning ---------------------------------------------------------------------------

    def fit(self, panel_df: Any, loans_df: Any = None) -> None:
        """Count monthly moves; earlier counts are forgotten.

        Args:
            panel_df: polars or pandas panel with loan_id, reporting_month and loan_state, and for groups
                asset_class, vintage_month.
            loans_df: tape with loan_id and maturity_date, needed for 'is_final'.

        Raises:
            DataError: columns are missing, a state is out of range, or there is no move at all.
        """
        self.fit_moves(consecutive_moves(panel_df, loans_df if "is_final" in self.config.by else None))

    def fit_moves(self, moves: pl.DataFrame) -> None:
        """`fit` on moves already found: from_state, to_state, and the columns of its groups."""
        if moves.is_empty():
            raise DataError("no two consecutive months of any loan", expected="at least one move", got=0)
        states = moves.select(
            pl.min_horizontal("from_state", "to_state").min().alias("low"),
            pl.max_horizontal("from_state", "to_state").max().alias("high"),
        ).row(0)
        if states[0] < 0 or states[1] >= self.config.n_states:
            raise DataError("state out of range", expected=f"0..{self.config.n_states - 1}", got=states)
        place = (*self.group_codes(moves), moves["from_state"].to_numpy(), moves["to_state"].to_numpy())
        self.counts = np.zeros_like(self.counts)
        np.add.at(self.counts, place, 1.0)

    def group_codes(self, moves: pl.DataFrame) -> tuple[np.ndarray, ...]:
        """Position of each move along each grouping; columns as of `consecutive_moves`."""
        return tuple(_codes(name, moves) for name in self.config.by)

    # ---- what it says -----------------------------------------------------------------------

    @property
    def transition_matrix(self) -> np.ndarray:
        """(n, n) pooled maximum likelihood; a state never left stays."""
        counts = self._pooled_counts()
        total = counts.sum(axis=1, keepdims=True)
        return np.where(total > 0, counts / np.maximum(total, 1.0), np.eye(self.config.n_states))

    @property
    def matrices(self) -> np.ndarray:
        """(*groups, n, n) rows of each group, shrunk towards the pooled ones."""
        weight, pooled = self.config.shrinkage, self.transition_matrix
        total = self.counts.sum(axis=-1, keepdims=True)
        if not self.config.by:
            return pooled
        mixed = (self.counts + weight * pooled) / np.maximum(total + weight, 1e-12)
        return np.where(total + weight > 0, mixed, pooled)

    def confidence_intervals(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) of each cell of `counts`, Jeffreys intervals (Brown, Cai & DasGupta 2001).

        A cell never seen has lower 0, one always seen upper 1; a row without data is 0..1.
        """
        if not 0 < level < 1:
            raise ConfigError("not a confidence level", expected="between 0 and 1", got=level)
        seen, total = self.counts, self.counts.sum(axis=-1, keepdims=True)
        missed, tail = total - seen, (1 - level) / 2
        lower = np.where(seen > 0, beta.ppf(tail, seen + 0.5, missed + 0.5), 0.0)
        upper = np.where(missed > 0, beta.ppf(1 - tail, seen + 0.5, missed + 0.5), 1.0)
        return lower, upper

    def rows(self, moves: pl.DataFrame) -> np.ndarray:
        """(N, n) probabilities of the state moved to, one row per move (columns of `consecutive_moves`)."""
        return self.matrices[(*self.group_codes(moves), moves["from_state"].to_numpy())]

    def simulate(
        self,
        initial_states: np.ndarray,
        n_steps: int,
        *,
        asset_class: Sequence[str] | np.ndarray | None = None,
        age_months: np.ndarray | None = None,
        remaining_months: np.ndarray | None = None,
        months_since_miss: np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw state sequences.

        Args:
            initial_states: (L,) states before the first step. n_steps: months, >= 1.
            asset_class, age_months, remaining_months, months_since_miss: (L,) at the start, each needed
                only by a chain that distinguishes it.
            seed: of the draws.

        Returns:
            (L, n_steps) int64 states after each step.

        Raises:
            ModelError: a state out of range, or a group's input is missing.
        """
        state = np.asarray(initial_states, dtype=np.int64).copy()
        if (
            n_steps < 1
            or state.ndim != 1
            or (state.size > 0 and not 0 <= state.min() <= state.max() < self.config.n_states)
        ):
            raise ModelError(
                "cannot start there",
                expected=f"(L,) states 0..{self.config.n_states - 1}, n_steps >= 1",
                got=f"shape {state.shape}, n_steps {n_steps}",
            )
        fixed = {"asset_class": asset_class, "age": age_months, "is_final": remaining_months}
        missing = [name for name, value in fixed.items() if name in self.config.by and value is None]
        if missing:
            raise ModelError(
                "this chain needs to know its groups", expected=", ".join(missing), got="nothing"
            )
        since = np.full(len(state), -1) if months_since_miss is None else np.asarray(months_since_miss).copy()
        cumulative = np.cumsum(self.matrices, axis=-1)
        random, out = stream(seed, "markov"), np.empty((len(state), n_steps), dtype=np.int64)
        for step in range(n_steps):
            since = np.where((state >= 1) & (state < N_LIVING), 0, since)
            moves = _moves_now(state, step, asset_class, age_months, remaining_months, since)
            rows = cumulative[(*self.group_codes(moves), state)]
            rows[:, -1] = 1.0
            state = (random.random(len(state))[:, None] >= rows).sum(axis=1)
            since = np.where(since >= 0, since + 1, since)
            out[:, step] = state
        return out

    # ---- saving -----------------------------------------------------------------------------

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """The counts, for `models.checkpoint`."""
        return {"counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], /) -> None:
        """Take counts back.

        Raises:
            ModelError: they are of another shape.
        """
        counts = state_dict["counts"].numpy()
        if counts.shape != self.counts.shape:
            raise ModelError("counts do not fit the chain", expected=self.counts.shape, got=counts.shape)
        self.counts = counts.astype(float)

    def _pooled_counts(self) -> np.ndarray:
        return self.counts.sum(axis=tuple(range(len(self.config.by))))


def consecutive_moves(panel: Any, loans: Any = None) -> pl.DataFrame:
    """One row per loan and pair of consecutive months, living states only at the start.

    Gaps and repeated months make no move. Recency counts months from the last delinquent month to the
    month moved from, over the months on record.

    Args:
        panel: polars or pandas with loan_id, reporting_month, loan_state; other columns are kept.
        loans: tape with loan_id and maturity_date; adds `is_final` (else False).

    Returns:
        The panel's columns of the month moved to, and from_state, to_state, age_months, since_miss
        (-1 never), is_final.
    """
    frame = nw.from_native(panel, eager_only=True).to_polars()
    missing = [name for name in ("loan_id", "reporting_month", "loan_state") if name not in frame.columns]
    if missing:
        raise DataError("columns are missing", expected=", ".join(missing), got=frame.columns, where="panel")
    keys = ["loan_id", *(name for name in _PATH_KEYS if name in frame.columns)]
    frame = frame.with_columns(
        pl.col("reporting_month").cast(pl.Date), pl.col("loan_state").cast(pl.Int64)
    ).unique([*keys, "reporting_month"], keep="first", maintain_order=True)
    frame = frame.sort(*keys, "reporting_month").with_columns(_month=month_index_expr("reporting_month"))
    late = pl.col("loan_state").is_between(1, N_LIVING - 1)
    last_miss = pl.when(late).then("_month").forward_fill().over(keys)
    frame = frame.with_columns(
        from_state=pl.col("loan_state").shift(1).over(keys),
        _before=pl.col("_month").shift(1).over(keys),
        _since=(pl.col("_month") - last_miss).fill_null(-1),
    ).with_columns(since_miss=pl.col("_since").shift(1).over(keys))
    moves = frame.filter((pl.col("_month") - pl.col("_before") == 1) & (pl.col("from_state") < N_LIVING))
    moves = moves.with_columns(to_state="loan_state")
    if "vintage_month" in moves.columns:
        moves = moves.with_columns(pl.col("vintage_month").cast(pl.Date)).with_columns(
            age_months=pl.col("_month") - month_index_expr("vintage_month")
        )
    moves = moves.with_columns(is_final=_is_final(moves, loans))
    return moves.drop("_before", "_since", "_month")


def _is_final(moves: pl.DataFrame, loans: Any) -> pl.Series:
    if loans is None:
        return pl.Series([False]).new_from_index(0, moves.height)
    tape = (
        nw.from_native(loans, eager_only=True)
        .to_polars()
        .select("loan_id", pl.col("maturity_date").cast(pl.Date))
    )
    joined = moves.select("loan_id", "_month").join(tape, on="loan_id", how="left", maintain_order="left")
    return joined.select((pl.col("_month") >= month_index_expr("maturity_date")).fill_null(False)).to_series()


def _codes(name: str, moves: pl.DataFrame) -> np.ndarray:
    if name == "asset_class":
        codes = moves["asset_class"].replace_strict(
            list(ASSET_CLASSES), range(len(ASSET_CLASSES)), return_dtype=pl.Int64
        )
        return codes.to_numpy()
    if name == "is_final":
        return moves["is_final"].cast(pl.Int64).to_numpy()
    if name == "age":
        return np.searchsorted(AGE_EDGES, np.maximum(moves["age_months"].to_numpy(), 0), side="right") - 1
    since = moves["since_miss"].to_numpy()
    return np.where(since < 0, len(RECENCY_EDGES), np.searchsorted(RECENCY_EDGES, since, side="right") - 1)


def _moves_now(
    state: np.ndarray,
    step: int,
    asset_class: Sequence[str] | np.ndarray | None,
    age_months: np.ndarray | None,
    remaining_months: np.ndarray | None,
    since: np.ndarray,
) -> pl.DataFrame:
    columns: dict[str, Any] = {"from_state": state, "since_miss": since}
    if asset_class is not None:
        columns["asset_class"] = list(asset_class)
    if age_months is not None:
        columns["age_months"] = np.asarray(age_months) + step + 1
    if remaining_months is not None:
        columns["is_final"] = np.asarray(remaining_months) <= step + 1
    return pl.DataFrame(columns)
