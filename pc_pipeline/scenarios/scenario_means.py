"""From a scenario definition to the mean of all nine series, month by month.

Here: stated shifts, supplied paths, and the reaction rules that make the policy rate, the 10-year yield and
equity answer, so that a shock moves all nine series. Not here: noise around the mean (`generator`).

Reaction rules (ours; formulas (3)-(6) of docs/methods/macro.md). With d the shift of a mean from its
baseline:

    target_t   = 1.5 d inflation_t - 0.5 d unemployment_t    Taylor-like, floored at the lower bound
    d policy_t = 0.7 d policy_{t-1} + 0.3 target_t           inertia of a central bank
    d yield_t  = 0.4 d policy_t + 0.25 d inflation_t         expectations and term premium
    d equity_t = -0.25 [ln k_t - ln k_{t-12}]                k = IG spread over its baseline

Equity is a return over 12 months: it falls while spreads widen, comes back to its mean when they stay wide
for a year, and rebounds while they narrow.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.scenarios.definitions import ScenarioDefinition
from pc_pipeline.scenarios.marginals import LOWER_M, RANGE_M, UPPER_M, inside
from pc_pipeline.schemas.units import MACRO_NAMES

TAYLOR_INFLATION: Final = 1.5
TAYLOR_UNEMPLOYMENT: Final = -0.5
POLICY_INERTIA: Final = 0.7  # per month
YIELD_ON_POLICY: Final = 0.4
YIELD_ON_INFLATION: Final = 0.25
EQUITY_ON_LOG_SPREAD: Final = -0.25
EQUITY_WINDOW_MONTHS: Final = 12
MARGIN: Final = 0.02  # share of its range that a shifted mean keeps from its lower bound
UPPER_MARGIN_SD: Final = 1.0  # standard deviations that it keeps from its upper bound

_AT = {name: index for index, name in enumerate(MACRO_NAMES)}


def scenario_mean(
    definition: ScenarioDefinition, base_TM: np.ndarray, persistence_M: np.ndarray, sd_M: np.ndarray
) -> np.ndarray:
    """Mean path under a scenario.

    Args:
        definition: the scenario.
        base_TM: (T, 9) mean without it.
        persistence_M: (9,) monthly, at which a supplied path goes back to the baseline after its end.
        sd_M: (9,) long-run standard deviations.

    Returns:
        (T, 9), inside the bounds; see `hold_inside`.
    """
    n_months = base_TM.shape[0]
    weight = definition.profile(n_months)
    shifted = base_TM.copy()
    for series, shift in definition.shifts.items():
        shifted[:, _AT[series]] = shift.apply(base_TM[:, _AT[series]], weight)
    for series, values in definition.path.items():
        at = _AT[series]
        shifted[:, at] = _follow_path(np.array(values), base_TM[:, at], float(persistence_M[at]))
    free = [series not in definition.shifts and series not in definition.path for series in MACRO_NAMES]
    if definition.reacts:
        _react(shifted, base_TM, free)
    held = hold_inside(shifted, base_TM, sd_M)
    for series in definition.path:  # as supplied, even beside a bound, and back from there
        held[:, _AT[series]] = inside(shifted)[:, _AT[series]]
    return held


def hold_inside(shifted_TM: np.ndarray, base_TM: np.ndarray, sd_M: np.ndarray) -> np.ndarray:
    """Shifted means kept off the bounds, but never further than the baseline is.

    From below by 2 % of the range (the policy rate does lie on its floor for years), from above by one
    standard deviation, so that there is room for noise at the peak of a shock.
    """
    lowest = np.minimum(LOWER_M + MARGIN * RANGE_M, base_TM)
    from_above = np.maximum(MARGIN * RANGE_M, UPPER_MARGIN_SD * sd_M)
    highest = np.maximum(UPPER_M - from_above, base_TM)
    return np.clip(shifted_TM, lowest, highest)


def _follow_path(values: np.ndarray, base_T: np.ndarray, persistence: float) -> np.ndarray:
    """The supplied values, then back to the baseline: gap x persistence^months."""
    n_months = len(base_T)
    known = min(len(values), n_months)
    followed = base_T.copy()
    followed[:known] = values[:known]
    gap = values[known - 1] - base_T[known - 1]
    followed[known:] += gap * persistence ** np.arange(1, n_months - known + 1)
    return followed


def _react(shifted: np.ndarray, base: np.ndarray, free: list[bool]) -> None:
    """Fill policy rate, 10-year yield and equity by the rules of the module docstring, in place."""
    inflation = shifted[:, _AT["inflation_rate"]] - base[:, _AT["inflation_rate"]]
    unemployment = shifted[:, _AT["unemployment_rate"]] - base[:, _AT["unemployment_rate"]]
    policy_at, yield_at, equity_at = _AT["policy_rate"], _AT["yield_10y"], _AT["equity_return"]
    if free[policy_at]:
        target = TAYLOR_INFLATION * inflation + TAYLOR_UNEMPLOYMENT * unemployment
        shifted[:, policy_at] = base[:, policy_at] + policy_shift(target, base[:, policy_at])
    if free[yield_at]:
        policy = shifted[:, policy_at] - base[:, policy_at]
        shifted[:, yield_at] = base[:, yield_at] + YIELD_ON_POLICY * policy + YIELD_ON_INFLATION * inflation
    if free[equity_at]:
        widening = np.log(shifted[:, _AT["credit_spread_ig"]] / base[:, _AT["credit_spread_ig"]])
        year_ago = np.concatenate([np.zeros(EQUITY_WINDOW_MONTHS), widening])[: len(widening)]
        shifted[:, equity_at] = base[:, equity_at] + EQUITY_ON_LOG_SPREAD * (widening - year_ago)


def policy_shift(target_T: np.ndarray, base_T: np.ndarray) -> np.ndarray:
    """(T,) shift of the policy rate that follows its target with inertia, above the effective lower bound."""
    at = _AT["policy_rate"]
    lowest = np.minimum(LOWER_M[at] + MARGIN * RANGE_M[at] - base_T, 0.0)
    shift, path = 0.0, np.empty_like(target_T)
    for month, target in enumerate(np.maximum(target_T, lowest)):
        shift = POLICY_INERTIA * shift + (1 - POLICY_INERTIA) * target
        path[month] = shift
    return path


def check_pins(definition: ScenarioDefinition, n_months: int) -> None:
    """Refuse pins that lie beyond the last month.

    Raises:
        ConfigError: names the pin.
    """
    for series, values in definition.pins.items():
        if max(values) >= n_months:
            raise ConfigError(
                "a value is pinned beyond the last month",
                expected=f"a month before {n_months}",
                got=max(values),
                where=f"scenario {definition.name!r}, pins.{series}",
            )
