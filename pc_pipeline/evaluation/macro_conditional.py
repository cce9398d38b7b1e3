"""Do conditional paths move as the generator's conditional law does?

Here: `conditional_table`: paths that a `MacroVAE` draws given values, held against Gaussian conditioning of
the law that made its training paths. Not here: that law (`scenarios.exact_law`), the sampler
(`models.macro_conditioning`).

Compared in opened values (logit within the bounds), in which the law is exactly Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from pc_pipeline.models.macro_conditioning import TOLERANCE
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.scenarios.exact_law import GaussianLaw, Given, open_values
from pc_pipeline.schemas.units import MACRO_NAMES, MACRO_SERIES

_RANGE_M: Final = np.array([series.upper - series.lower for series in MACRO_SERIES])
_FREE_SHARE: Final = 0.1  # cells whose conditional sd is below this share of the free one count as given


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionCase:
    """Values to be met in a scenario."""

    name: str
    scenario: str
    given: tuple[Given, ...]


CASES: Final = (
    ConditionCase(
        name="unemployment 7 % in month 24",
        scenario="baseline",
        given=(("unemployment_rate", 24, 0.07),),
    ),
    ConditionCase(
        name="GDP -3 % and high-yield spread 1,000 bps in month 12",
        scenario="adverse",
        given=(("gdp_growth_yoy", 12, -0.03), ("credit_spread_hy", 12, 1000.0)),
    ),
    ConditionCase(
        name="policy rate 5.5 % in month 12, 7 % in month 36",
        scenario="stagflation",
        given=(("policy_rate", 12, 0.055), ("policy_rate", 36, 0.07)),
    ),
)


def conditional_table(
    model: MacroVAE,
    laws: Mapping[str, GaussianLaw],
    *,
    cases: Sequence[ConditionCase] = CASES,
    n_paths: int = 4000,
    seed: int = 0,
) -> pl.DataFrame:
    """One row per case.

    Args:
        laws: scenario -> exact law of its paths.

    Returns:
        case, worst_miss (largest distance of a conditioned value from its target, share of range; tolerance
        `macro_conditioning.TOLERANCE`), mean_gap_sd (largest gap of conditional means over months and
        series, in unconditional sds) with mean_gap_error, mean_gap_where, sd_gap (largest relative gap of
        conditional sds where something is left to vary) with sd_gap_error, moved (largest change of a mean by
        the condition, in the same sds: what a sampler that edits paths would miss).

    Raises:
        ModelError: the model deems a case implausible.
    """
    rows = []
    for case in cases:
        free, exact = laws[case.scenario], laws[case.scenario].given(case.given)
        entries: dict[str, list[dict[str, float]]] = {}
        for series, month, value in case.given:
            entries.setdefault(series, []).append({"month": month, "value": value})
        paths = model.generate_conditional(
            entries, free.n_months, n_paths, scenario=case.scenario, seed=seed
        ).double()
        values = paths.numpy()
        rows.append({"case": case.name, **_compare(values, free, exact, case.given)})
    return pl.DataFrame(rows)


def _compare(
    values_PTM: np.ndarray, free: GaussianLaw, exact: GaussianLaw, given: Sequence[Given]
) -> dict[str, float | str]:
    n_paths, opened, spread = len(values_PTM), open_values(values_PTM), free.sd_path()
    gap = (opened.mean(0) - exact.mean_path()) / spread
    at = np.unravel_index(int(np.abs(gap).argmax()), gap.shape)
    open_cell = exact.sd_path() > _FREE_SHARE * spread
    ratio = np.where(open_cell, opened.std(0) / np.where(open_cell, exact.sd_path(), 1.0), 1.0) - 1.0
    missed = [
        float(np.abs(values_PTM[:, month, k] - value).max() / _RANGE_M[k])
        for name, month, value in given
        for k in [MACRO_NAMES.index(name)]
    ]
    return {
        "worst_miss": max(missed),
        "mean_gap_sd": float(np.abs(gap[at])),
        "mean_gap_error": float((exact.sd_path() / spread)[at] / np.sqrt(n_paths)),
        "mean_gap_where": f"{MACRO_NAMES[int(at[1])]} month {int(at[0])}",
        "sd_gap": float(np.abs(ratio).max()),
        "sd_gap_error": float(1 / np.sqrt(2 * n_paths)),
        "moved": float(np.abs((exact.mean_path() - free.mean_path()) / spread).max()),
    }


def is_met(row: Mapping[str, float]) -> bool:
    """Whether the conditions of a case were met within the tolerance the sampler states."""
    return row["worst_miss"] <= TOLERANCE


def scenario_odds(laws: Mapping[str, GaussianLaw], given: Sequence[Given]) -> dict[str, float]:
    """Exact probability of each scenario given values, equal prior weights."""
    logs = {name: law.log_density(given) for name, law in laws.items()}
    top = max(logs.values())
    raw = {name: float(np.exp(value - top)) for name, value in logs.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}
