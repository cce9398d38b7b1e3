"""The networks as the simulator calls them: cohort rows per macro path, raw features per loan.

Here: `NetworkRows`, `loan_inputs`, the calendar of a run. Not here: the networks (`models`), the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.periods import month_index, month_range
from pc_pipeline.loans.features import FeatureScaler, calendar_features, loan_features
from pc_pipeline.loans.segments import loan_extras
from pc_pipeline.schemas.units import COHORT_FEATURES, LOAN_FEATURES


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRows:
    """A transition network as a provider of rows: macro (P, T, 9) -> (P, C, T, 4, 7) float32.

    Attributes:
        model: `TransitionTransformer`, or anything with its `read_cohorts` and `rows_given`.
        cohorts: cohort table with the 12 raw COHORT_FEATURES.
        start: first simulated month; None leaves the calendar neutral.
        intercept_TKJ: additive logits (T, 4, 7) from distillation, or None.
    """

    model: Any
    cohorts: pl.DataFrame
    start: date | None = None
    intercept_TKJ: np.ndarray | None = None

    # Not an argument: a copy with other cohorts must not read those of its original.
    _read: dict[tuple[int, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, macro_PTM: np.ndarray) -> np.ndarray:
        """Rows of a batch of paths; in memory months lie outermost."""
        device = next(self.model.parameters()).device
        macro = torch.from_numpy(np.array(macro_PTM, dtype=np.float32)).to(device)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return np.asarray(self.model.rows_given(self._cohorts(macro.shape[1], device), macro).cpu())
        finally:
            self.model.train(was_training)

    def _cohorts(self, n_months: int, device: Any) -> Any:
        """What the model reads of the cohorts: once, unless its weights move."""
        key = (n_months, *(p._version for p in self.model.parameters() if not p.is_inference()))
        if key not in self._read:
            features = self.cohorts.select(COHORT_FEATURES).cast(pl.Float32).fill_null(np.nan).to_numpy()
            extra = None if self.intercept_TKJ is None else torch.from_numpy(self.intercept_TKJ).to(device)
            self._read.clear()
            self._read[key] = self.model.read_cohorts(
                torch.from_numpy(np.array(features, dtype=np.float32)).to(device),
                n_months,
                calendar_tensor(self.start, n_months, device),
                extra=extra,
            )
        return self._read[key]


def calendar_tensor(start: date | None, n_months: int, device: Any = "cpu") -> torch.Tensor | None:
    """(T, 2) month of year and month-end weekday of the simulated months; None is neutral."""
    if start is None:
        return None
    return torch.from_numpy(calendar_features(month_range(start, n_months))).long().to(device)


def loan_inputs(pool: pl.DataFrame, reference_month: int | None = None) -> np.ndarray:
    """(L, 38) raw features and `LOAN_EXTRAS` of each loan at the cut-off, NaN where missing.

    Args:
        pool: `pool` table with tape columns.
        reference_month: month index at which vintage_index is 0; the pool's first vintage without it.
    """
    first = month_index(pool["vintage_month"].min()) if reference_month is None else reference_month  # type: ignore[arg-type]
    n = len(LOAN_FEATURES)
    identity = FeatureScaler(names=LOAN_FEATURES, mean=(0.0,) * n, sd=(1.0,) * n, reference_month=first)
    found = loan_features(pool, identity)
    values = np.where(found.missing, np.nan, found.values)
    return np.column_stack([values, loan_extras(pool)]).astype(np.float32)
