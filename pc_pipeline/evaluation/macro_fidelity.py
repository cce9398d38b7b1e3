"""Are generated macro paths like real ones? Every figure with its interval and its goal.

Here: `macro_fidelity_table` (moments per scenario, series and horizon; mean paths), `classifier_rows`,
`summarise_macro_fidelity`. Not here: the classifiers (`evaluation.two_sample`), conditional laws
(`evaluation.macro_conditional`), the latent (`evaluation.macro_latent`), who draws either sample.

Intervals are 95 %: a delete-a-group jackknife over `GROUPS` groups of paths for moments (both samples lose a
group at a time), binomial for the band (of the real values and of the drawn quantiles), Hanley and McNeil for
classifiers. Worst figures over many cells are biased outwards by the noise of the test itself; the
interval says by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.evaluation.two_sample import check_samples, two_sample_auc
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES, N_MACRO

HORIZONS: Final = (12, 36, 60)
BAND: Final = 0.90
GROUPS: Final = 20
GOALS: Final = {  # measure -> lowest and highest value that will do
    "sd_ratio": (0.9, 1.1),
    "mean_gap_sd": (-0.2, 0.2),
    "autocorrelation_gap": (-0.02, 0.02),
    "correlation_gap": (0.0, 0.05),
    "band_coverage": (0.87, 0.93),
    "mean_path_gap_range": (0.0, 0.005),
    "auc_moments": (0.0, 0.55),
    "auc_sequence": (0.0, 0.55),
}
ROWS: Final = {
    "measure": pl.String,
    "scenario": pl.String,
    "series": pl.String,  # '' where the figure is about all nine
    "horizon": pl.Int64,  # null where it is about the whole path
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "goal_low": pl.Float64,
    "goal_high": pl.Float64,
    "passed": pl.Boolean,  # the value lies inside the goal
}
_RANGE_M: Final = np.array([series.upper - series.lower for series in MACRO_SERIES])
_Z: Final = 1.96


def macro_fidelity_table(
    real: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    *,
    real_means: Mapping[str, np.ndarray] | None = None,
    drawn_means: Mapping[str, np.ndarray] | None = None,
) -> pl.DataFrame:
    """Moments side by side, in long form.

    Args:
        real, drawn: scenario -> (P, T, 9) paths, original units; numbers of paths may differ.
        real_means: scenario -> (T, 9) exact mean path, where it is known.
        drawn_means: scenario -> (K, T, 9) mean paths of K independent batches, where there are better ones
            than `drawn` gives (antithetic pairs).

    Returns:
        Columns `ROWS`. Measures per series and horizon (months 12, 36, 60 where paths reach them): sd_ratio
        (cross-path, drawn over real), mean_gap_sd (in real sds), autocorrelation_gap (lag 1 within the
        window, of deviations from the mean path), correlation_gap (largest over partners, of values at the
        horizon), band_coverage (share of real values inside the drawn 90 % band). Per series:
        mean_path_gap_range (largest over months, share of the bounds' range).

    Raises:
        ModelError: samples that cannot be compared.
    """
    rows: list[tuple[object, ...]] = []
    for scenario, real_PTM in real.items():
        drawn_PTM = drawn[scenario]
        check_samples(real_PTM, drawn_PTM)
        rows += _moment_rows(scenario, real_PTM, drawn_PTM)
        truth = real_PTM.mean(0) if real_means is None else real_means[scenario]
        batches = _batch_means(drawn_PTM) if drawn_means is None else drawn_means[scenario]
        rows += _mean_path_rows(scenario, truth, batches)
    return pl.DataFrame(rows, schema=ROWS, orient="row")


def classifier_rows(
    real: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
    *,
    kinds: tuple[str, ...] = ("moments", "sequence"),
    seed: int = 0,
    epochs: int = 15,
) -> pl.DataFrame:
    """Two-sample tests on whole paths per scenario, as rows of `macro_fidelity_table`."""
    rows = []
    for scenario, real_PTM in real.items():
        for kind in kinds:
            auc, error = two_sample_auc(real_PTM, drawn[scenario], kind, seed=seed, epochs=epochs)
            rows.append(_row(f"auc_{kind}", scenario, "", None, auc, error))
    return pl.DataFrame(rows, schema=ROWS, orient="row")


def summarise_macro_fidelity(table: pl.DataFrame) -> pl.DataFrame:
    """One row per measure: the cell furthest out, and how many cells meet the goal.

    Returns:
        measure, cells, met, value, low, high (of the worst cell), goal_low, goal_high, passed (all cells),
        where (the worst cell).
    """
    centre = (pl.col("goal_low") + pl.col("goal_high")) / 2
    one_sided = pl.col("goal_low") == 0.0
    off = pl.when(one_sided).then(pl.col("value")).otherwise((pl.col("value") - centre).abs())
    where = pl.concat_str(
        [pl.col("scenario"), pl.col("series"), pl.col("horizon").cast(pl.String).fill_null("")], separator=" "
    ).str.strip_chars()
    return (
        table.with_columns(off=off, where=where)
        .sort("measure", "off", "where", descending=[False, True, False])
        .group_by("measure", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("cells"),
            pl.col("passed").sum().cast(pl.Int64).alias("met"),
            *[pl.col(name).first() for name in ("value", "low", "high", "goal_low", "goal_high")],
            pl.col("passed").all(),
            pl.col("where").first(),
        )
    )


# ---- rows -----------------------------------------------------------------------------------


def _row(
    measure: str, scenario: str, series: str, horizon: int | None, value: float, error: float
) -> tuple[object, ...]:
    low, high = GOALS[measure]
    value, span = float(value), _Z * float(error)
    inside = bool(low <= value <= high)
    return (measure, scenario, series, horizon, value, value - span, value + span, low, high, inside)


def _moment_rows(scenario: str, real_PTM: np.ndarray, drawn_PTM: np.ndarray) -> list[tuple[object, ...]]:
    horizons = [h for h in HORIZONS if h <= real_PTM.shape[1]]
    sums = [_GroupSums(paths, horizons) for paths in (real_PTM, drawn_PTM)]
    whole = _figures(*[s.total(None) for s in sums])
    parts = [_figures(*[s.total(k) for s in sums]) for k in range(GROUPS)]
    rows = []
    for measure, value_HM in whole.items():
        spread = np.stack([part[measure] for part in parts])
        error_HM = np.sqrt((GROUPS - 1) * ((spread - spread.mean(0)) ** 2).mean(0))
        rows += [
            _row(measure, scenario, name, h, value_HM[i, k], error_HM[i, k])
            for i, h in enumerate(horizons)
            for k, name in enumerate(MACRO_NAMES)
        ]
    return rows + _band_rows(scenario, real_PTM, drawn_PTM, horizons)


def _band_rows(
    scenario: str, real_PTM: np.ndarray, drawn_PTM: np.ndarray, horizons: list[int]
) -> list[tuple[object, ...]]:
    rows = []
    for horizon in horizons:
        real, drawn = real_PTM[:, horizon - 1], drawn_PTM[:, horizon - 1]
        low, high = np.quantile(drawn, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
        covered = ((real >= low) & (real <= high)).mean(0)
        # what two order statistics of n draws cover has this variance too (a beta law)
        error = np.sqrt(covered * (1 - covered) * (1 / len(real) + 1 / len(drawn)))
        rows += [
            _row("band_coverage", scenario, name, horizon, covered[k], error[k])
            for k, name in enumerate(MACRO_NAMES)
        ]
    return rows


def _mean_path_rows(scenario: str, truth_TM: np.ndarray, batches_KTM: np.ndarray) -> list[tuple[object, ...]]:
    gap = np.abs(batches_KTM.mean(0) - truth_TM) / _RANGE_M
    error = batches_KTM.std(0, ddof=1) / np.sqrt(len(batches_KTM)) / _RANGE_M
    at = gap.argmax(0)
    return [
        _row("mean_path_gap_range", scenario, name, None, gap[at[k], k], error[at[k], k])
        for k, name in enumerate(MACRO_NAMES)
    ]


def _batch_means(paths_PTM: np.ndarray) -> np.ndarray:
    n = len(paths_PTM) // GROUPS * GROUPS
    return paths_PTM[:n].reshape(GROUPS, -1, *paths_PTM.shape[1:]).mean(1)


class _GroupSums:
    """Sums over groups of paths, of which every moment is made: leaving a group out costs nothing."""

    def __init__(self, paths_PTM: np.ndarray, horizons: list[int]) -> None:
        n = max(1, len(paths_PTM) // GROUPS) * min(GROUPS, len(paths_PTM))
        gap = (paths_PTM[:n] - paths_PTM.mean(0)).reshape(GROUPS, -1, *paths_PTM.shape[1:])
        at = [h - 1 for h in horizons]
        self._mean_HM = paths_PTM.mean(0)[at]
        self._n = gap.shape[1]
        self._first = gap[:, :, at].sum(1)  # K H M
        self._second = np.einsum("kphm,kphn->khmn", gap[:, :, at], gap[:, :, at], optimize=True)
        products = [
            np.einsum("kptm,kptm->ktm", gap[:, :, left], gap[:, :, right], optimize=True).cumsum(1)
            for left, right in (
                (slice(1, None), slice(None, -1)),
                (slice(1, None), slice(1, None)),
                (slice(None, -1), slice(None, -1)),
            )
        ]
        windows = [h - 2 for h in horizons]
        self._lags = np.stack([product[:, windows] for product in products])  # 3 K H M

    def total(self, without: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means (H, M), covariances (H, M, M), lag-1 autocorrelations (H, M) of all groups but one."""
        use = [k for k in range(GROUPS) if k != without]
        n = self._n * len(use)
        gap = self._first[use].sum(0) / n
        covariance = self._second[use].sum(0) / n - gap[:, :, None] * gap[:, None, :]
        cross, after, before = self._lags[:, use].sum(1)
        return self._mean_HM + gap, covariance, cross / np.maximum(np.sqrt(after * before), 1e-30)


_Sums = tuple[np.ndarray, np.ndarray, np.ndarray]


def _figures(real: _Sums, drawn: _Sums) -> dict[str, np.ndarray]:
    """Each measure as (H, M)."""
    sd = [np.maximum(np.sqrt(np.einsum("hmm->hm", part[1])), 1e-12) for part in (real, drawn)]
    levels = [
        part[1] / (spread[:, :, None] * spread[:, None, :])
        for part, spread in zip((real, drawn), sd, strict=True)
    ]
    between = np.abs(levels[0] - levels[1]) * (1 - np.eye(N_MACRO))
    return {
        "sd_ratio": sd[1] / sd[0],
        "mean_gap_sd": (drawn[0] - real[0]) / sd[0],
        "autocorrelation_gap": drawn[2] - real[2],
        "correlation_gap": between.max(2),
    }
