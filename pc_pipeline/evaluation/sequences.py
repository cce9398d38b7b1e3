"""Generated payment histories against real ones: every figure with an interval and a pass mark.

Here: `validate_sequences`. Families of rates come from `sequence_rates`, whole-sample tests from
`sequence_tests`. A family passes when each of its cells is either small in size (its tolerance) or within the
sampling noise of both samples (Bonferroni at 1 %). Not here: plots (`reports.cascade_plots`), log-loss
against challengers (`sequence_models`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from scipy.stats import norm

from pc_pipeline.core.errors import DataError
from pc_pipeline.evaluation import sequence_rates as rates
from pc_pipeline.evaluation.sequence_rates import Differences, Rates, differences
from pc_pipeline.evaluation.sequence_tests import (
    copy_rates,
    default_survival,
    neighbour_distance,
    two_sample_auc,
)
from pc_pipeline.loans.borrower_features import FEATURE_NAMES
from pc_pipeline.loans.payment_status import as_codes
from pc_pipeline.schemas.states import PAYMENT_STATUSES

COLUMNS: Final = {
    "figure": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,  # 95 % interval of the value
    "high": pl.Float64,
    "goal": pl.String,
    "passed": pl.Boolean,
    "note": pl.String,  # the worst cell of a family
}
CELL_COLUMNS: Final = {
    "family": pl.String,
    "cell": pl.String,
    "real": pl.Float64,
    "synthetic": pl.Float64,
    "low": pl.Float64,  # 95 % interval of the difference
    "high": pl.Float64,
    "judged": pl.Boolean,
}
TOLERANCE: Final = {
    "transitions": 0.01,
    "memory": 0.02,
    "run lengths": 0.02,
    "cure and roll by age": 0.03,
    "seasonality": 0.01,
    "default by feature": 0.03,
}
MOST_CLASSIFIED: Final = 6000  # histories a side for the classifier and the neighbours
LARGEST_AUC: Final = 0.55
_ALPHA: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceConfig:
    """Options of a validation.

    Attributes:
        seed: of subsampling and the classifier. most_classified: histories a side that these see.
        largest_auc: pass mark of the two-sample AUC.
    """

    seed: int = 0
    most_classified: int = MOST_CLASSIFIED
    largest_auc: float = LARGEST_AUC


class SequenceValidation(dict[str, float]):
    """Figures by name, e.g. `results["transition_error"]`.

    Attributes:
        table: one row a figure, columns `COLUMNS`. cells: one row a rate, columns `CELL_COLUMNS`.
        survival: month, real, synthetic: share not yet defaulted.
    """

    def __init__(self, table: pl.DataFrame, cells: pl.DataFrame, survival: pl.DataFrame) -> None:
        super().__init__(zip(table["figure"].to_list(), table["value"].to_list(), strict=True))
        self.table, self.cells, self.survival = table, cells, survival

    @property
    def passed(self) -> bool:
        """Whether every figure meets its pass mark."""
        return bool(self.table["passed"].all())


def validate_sequences(
    real_sequences: Any,
    synthetic_sequences: Any,
    *,
    real_features: np.ndarray | None = None,
    synthetic_features: np.ndarray | None = None,
    feature_names: tuple[str, ...] = FEATURE_NAMES,
    real_months: np.ndarray | None = None,
    synthetic_months: np.ndarray | None = None,
    config: SequenceConfig | None = None,
) -> SequenceValidation:
    """Compare two samples of histories.

    Args:
        real_sequences, synthetic_sequences: lists of statuses, (N, T) codes, or `PaymentSequences`.
        real_features, synthetic_features: (N, F) borrower features, for conditional default rates and the
            classifier. feature_names: of their columns.
        real_months, synthetic_months: (N,) month index of the first month, for seasonality.

    Returns:
        A dict of figures with `table`, `cells` and `passed`. Among them `transition_error`: mean absolute
        difference of the visited rows; `default_rate_match`: 1 - |difference| / real rate;
        `avg_length_error`: difference of mean lengths, months.

    Raises:
        DataError: a sample is empty or a status unknown.
    """
    settings = config or SequenceConfig()
    real, synthetic = _aligned(as_codes(real_sequences), as_codes(synthetic_sequences))
    families = _families(real, synthetic, real_features, synthetic_features, feature_names)
    if real_months is not None and synthetic_months is not None:
        families["seasonality"] = (
            rates.season_rates(real, real_months),
            rates.season_rates(synthetic, synthetic_months),
        )
    compared = {name: differences(a, b) for name, (a, b) in families.items()}
    rows = _headline(families["transitions"], rates.outcome_rates(real), rates.outcome_rates(synthetic))
    rows += [_family_row(name, found) for name, found in compared.items()]
    survival, curve = default_survival(real, synthetic)
    rows += [survival]
    random = np.random.default_rng(settings.seed)
    few_real, few_synthetic = (
        _few(random, len(codes), settings.most_classified) for codes in (real, synthetic)
    )
    rows += [
        two_sample_auc(
            real[few_real],
            synthetic[few_synthetic],
            None if real_features is None else real_features[few_real],
            None if synthetic_features is None else synthetic_features[few_synthetic],
            settings.largest_auc,
            settings.seed,
        ),
        copy_rates(real[few_real], synthetic[few_synthetic]),
        neighbour_distance(real[few_real], synthetic[few_synthetic]),
    ]
    return SequenceValidation(
        pl.DataFrame(rows, schema=COLUMNS, orient="row"),
        pl.concat([_cells(name, found) for name, found in compared.items()]),
        curve,
    )


def _aligned(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both samples with the same number of columns, -1 where a history has ended."""
    if min(len(real), len(synthetic)) < 2:
        raise DataError("two histories or more on each side", got=(len(real), len(synthetic)))
    months = max(real.shape[1], synthetic.shape[1])

    def wide(codes: np.ndarray) -> np.ndarray:
        return np.pad(codes, ((0, 0), (0, months - codes.shape[1])), constant_values=-1)

    return wide(real), wide(synthetic)


def _few(random: np.random.Generator, count: int, most: int) -> np.ndarray:
    return np.sort(random.permutation(count)[:most])


def _families(
    real: np.ndarray,
    synthetic: np.ndarray,
    real_features: np.ndarray | None,
    synthetic_features: np.ndarray | None,
    names: tuple[str, ...],
) -> dict[str, tuple[Rates, Rates]]:
    families = {
        name: (build(real), build(synthetic))
        for name, build in (
            ("transitions", rates.transition_rates),
            ("memory", rates.memory_rates),
            ("run lengths", rates.run_rates),
            ("cure and roll by age", rates.cure_and_roll_rates),
        )
    }
    if real_features is not None and synthetic_features is not None:
        varied = [c for c in range(real_features.shape[1]) if np.ptp(real_features[:, c]) > 1e-9]
        if varied:
            edges = [np.unique(np.quantile(real_features[:, c], (0.25, 0.5, 0.75))) for c in varied]
            labels = tuple(names[c] if c < len(names) else f"feature {c}" for c in varied)
            families["default by feature"] = (
                rates.feature_rates(real, real_features[:, varied], edges, labels),
                rates.feature_rates(synthetic, synthetic_features[:, varied], edges, labels),
            )
    return families


def _headline(moves: tuple[Rates, Rates], real: Rates, synthetic: Rates) -> list[tuple[Any, ...]]:
    """transition_error, default_rate_match, avg_length_error."""
    found = differences(*moves)
    shape = (-1, len(PAYMENT_STATUSES))
    visited = moves[0].bottom.sum(0).reshape(shape)[:, 0] > 0
    gaps = np.abs(found.value).reshape(shape)[visited]
    errors = found.se.reshape(shape)[visited]
    error = float(gaps.mean())
    # |d| of a cell is folded normal under noise alone: mean sqrt(2/pi) se.
    noise = float(np.sqrt(2 / np.pi) * errors.mean())
    spread = float(np.sqrt((errors**2).sum())) / errors.size
    ends = differences(real, synthetic)
    rate, gap, se = ends.real[0], ends.value[0], ends.se[0]
    match = 1.0 - abs(gap) / rate if rate > 0 else float(gap == 0)
    scale = rate if rate > 0 else 1.0
    length, length_se = ends.value[3], ends.se[3]
    limit = max(0.01, noise + 2 * spread)
    within = norm.ppf(1 - _ALPHA / 2)
    return [
        (
            "transition_error",
            error,
            max(error - 1.96 * spread, 0.0),
            error + 1.96 * spread,
            f"<= {limit:.4f}",
            error <= limit,
            f"noise alone would give {noise:.4f}",
        ),
        (
            "default_rate_match",
            match,
            1.0 - (abs(gap) + 1.96 * se) / scale,
            min(1.0, 1.0 - (abs(gap) - 1.96 * se) / scale),
            ">= 0.95, or the difference within noise",
            match >= 0.95 or abs(gap) <= within * se,
            f"real {rate:.4f}, synthetic {rate + gap:.4f}",
        ),
        (
            "avg_length_error",
            abs(length),
            max(abs(length) - 1.96 * length_se, 0.0),
            abs(length) + 1.96 * length_se,
            "<= 0.25 months, or within noise",
            abs(length) <= max(0.25, within * length_se),
            f"real {ends.real[3]:.2f}, synthetic {ends.real[3] + length:.2f} months",
        ),
    ]


def _family_row(name: str, found: Differences) -> tuple[Any, ...]:
    """The worst cell of a family: largest difference beyond what noise and tolerance allow."""
    goal = f"<= {TOLERANCE[name]:g} in every cell, or within noise"
    if not found.judged.any():
        return (f"{name}: worst difference", 0.0, 0.0, 0.0, goal, True, "no cell has enough histories")
    critical = norm.ppf(1 - _ALPHA / (2 * int(found.judged.sum())))
    gap = np.where(found.judged, np.abs(found.value), 0.0)
    excess = np.where(found.judged, gap - np.maximum(TOLERANCE[name], critical * found.se), -np.inf)
    worst = int(excess.argmax())
    value, se = gap[worst], found.se[worst]
    made = found.real[worst] + found.value[worst]
    note = f"{found.names[worst]}: real {found.real[worst]:.4f}, synthetic {made:.4f}"
    return (
        f"{name}: worst difference",
        float(value),
        float(max(value - 1.96 * se, 0.0)),
        float(value + 1.96 * se),
        goal,
        bool(excess[worst] <= 0),
        note,
    )


def _cells(name: str, found: Differences) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "family": [name] * len(found.names),
            "cell": list(found.names),
            "real": found.real,
            "synthetic": found.real + found.value,
            "low": found.value - 1.96 * found.se,
            "high": found.value + 1.96 * found.se,
            "judged": found.judged,
        },
        schema=CELL_COLUMNS,
    )
