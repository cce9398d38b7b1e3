"""Price, yield, duration, convexity and discount margin of a class's cash flows.

Here: closed sums and one-dimensional roots (scipy's brentq; the many-flow solver is `metrics.irr`). Not
here: where the flows come from (`engine`), searches over speeds (`scenarios_grid`).

Prices are per 1 of opening balance, yields are nominal per year with `compounding` periods (12: monthly,
2: bond-equivalent), times are years from settlement. Equation numbers refer to docs/methods/waterfall.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import brentq

from pc_pipeline.core.errors import DataError
from pc_pipeline.waterfall.metrics import irr

BASIS_POINT = 1e-4


def discount_factors(times: np.ndarray, rate: Any, compounding: int = 12) -> np.ndarray:
    """(1 + y / m)^(-m t): eq. (30)."""
    return (1.0 + np.asarray(rate, dtype=float) / compounding) ** (-compounding * times)


def price_from_yield(
    flows: np.ndarray, times: np.ndarray, rate: float, face: float, compounding: int = 12
) -> Any:
    """Price per 1 of `face` of flows (..., T) at a yield: eq. (31).

    Raises:
        DataError: no face.
    """
    if not face > 0:
        raise DataError("a price needs a balance to refer to", expected="> 0", got=face)
    return np.asarray(flows) @ discount_factors(times, rate, compounding) / face


def yield_from_price(
    flows: np.ndarray, times: np.ndarray, price: float, face: float, compounding: int = 12
) -> tuple[float, str]:
    """Yield at a price, and why there is none ('' if there is)."""
    found = irr(np.concatenate([[-price * face], flows]), np.concatenate([[0.0], times]))
    effective = float(found.rate)
    nominal = compounding * ((1.0 + effective) ** (1.0 / compounding) - 1.0)
    return nominal, str(found.reason)


def macaulay_duration(flows: np.ndarray, times: np.ndarray, rate: float, compounding: int = 12) -> float:
    """Mean time of the discounted flows, years; NaN without flows: eq. (32)."""
    values = flows * discount_factors(times, rate, compounding)
    return float(values @ times / values.sum()) if values.sum() > 0 else float("nan")


def modified_duration(flows: np.ndarray, times: np.ndarray, rate: float, compounding: int = 12) -> float:
    """-dP/dy / P, years, the flows standing still: eq. (33)."""
    return macaulay_duration(flows, times, rate, compounding) / (1.0 + rate / compounding)


def convexity(flows: np.ndarray, times: np.ndarray, rate: float, compounding: int = 12) -> float:
    """d2P/dy2 / P, years squared, the flows standing still: eq. (34)."""
    values = flows * discount_factors(times, rate, compounding)
    if not values.sum() > 0:
        return float("nan")
    squared = times * (times + 1.0 / compounding) / (1.0 + rate / compounding) ** 2
    return float(values @ squared / values.sum())


def effective_duration(price_at_shift: Callable[[float], float], shift: float = 25 * BASIS_POINT) -> float:
    """-(P(+s) - P(-s)) / (2 s P(0)), years, everything recomputed under a parallel shift: eq. (35).

    Args:
        price_at_shift: price when all rates (and the speeds that follow them) are moved by a shift.
    """
    return -(price_at_shift(shift) - price_at_shift(-shift)) / (2.0 * shift * price_at_shift(0.0))


def effective_convexity(price_at_shift: Callable[[float], float], shift: float = 25 * BASIS_POINT) -> float:
    """(P(+s) - 2 P(0) + P(-s)) / (s^2 P(0)), years squared: eq. (36)."""
    middle = price_at_shift(0.0)
    return (price_at_shift(shift) - 2.0 * middle + price_at_shift(-shift)) / (shift**2 * middle)


def discount_margin(
    flows: np.ndarray, years: np.ndarray, index: np.ndarray, price: float, face: float
) -> tuple[float, str]:
    """Margin over the index that discounts a floater's flows to its price: eq. (37).

    Args:
        flows: (T,) cash. years: (T,) length of each period. index: (T,) index rate of each period.

    Returns:
        The margin (decimal) and why there is none ('' if there is).
    """

    def miss(margin: float) -> float:
        factors = np.cumprod(1.0 / (1.0 + (index + margin) * years))
        return float(flows @ factors) / face - price

    lowest = float(np.max(-1.0 / years - index)) * 0.999
    low, high = max(lowest, -0.99), 10.0
    if miss(low) < 0 or miss(high) > 0:
        return float("nan"), "no margin between -99 % and 1000 % gives this price"
    return float(brentq(miss, low, high, xtol=1e-14, rtol=8.9e-16)), ""
