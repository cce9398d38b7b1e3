"""Bounded marginals: how a Gaussian number becomes a macro value that never leaves its bounds.

A series with bounds l, u is x = l + (u - l) / (1 + exp(-(a + b z))) of a standard normal z (logit-normal;
Johnson's S_B curve, Biometrika 1949). a and b are solved so that mean and standard deviation of x are exactly
those wanted, month by month; hence bounds cost nothing: no clipping, no shifted mean. Where the mean stands
close to a bound, the standard deviation asked for is first limited to `ROOM` of the distance.

Here too: which correlation of the normals gives a wanted correlation of the values ('normal to anything',
Cario and Nelson 1997), by Hermite expansion of the curve. Not here: dynamics over time (`dynamics`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.polynomial.hermite_e import hermegauss, hermeval
from scipy.optimize import brentq
from scipy.special import expit, gammaln, logit

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.schemas.units import MACRO_SERIES

LOWER_M: Final = np.array([series.lower for series in MACRO_SERIES])
UPPER_M: Final = np.array([series.upper for series in MACRO_SERIES])
RANGE_M: Final = UPPER_M - LOWER_M
ROOM: Final = 0.75  # largest standard deviation, as share of the mean's distance to the nearer bound

_NODES, _WEIGHTS = hermegauss(48)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_N_HERMITE: Final = 12
_NARROW: Final = 1e-5  # share of range below which the curve is a straight line
_EDGE: Final = 1e-6  # values on a bound count as this share of the range inside it


def limit_sd(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Standard deviation in force: `sd`, but at most `ROOM` of the distance from mean to bound."""
    room = np.minimum(mean - LOWER_M, UPPER_M - mean)
    return np.minimum(sd, ROOM * np.maximum(room, 0.0))


def inside(values: np.ndarray) -> np.ndarray:
    """Values moved off the bounds by a millionth of the range, so that the curve can reach them."""
    return np.clip(values, LOWER_M + _EDGE * RANGE_M, UPPER_M - _EDGE * RANGE_M)


@dataclass(frozen=True, slots=True)
class Curve:
    """Parameters of the bounded curve, any leading shape.

    Attributes:
        a, b: (..., 9) location and slope before the logistic function.
    """

    a: np.ndarray
    b: np.ndarray

    def values(self, z: np.ndarray) -> np.ndarray:
        """Macro values of standard normals z (..., 9)."""
        return LOWER_M + RANGE_M * expit(self.a + self.b * z)

    def normals(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `values`.

        Raises:
            ConfigError: a curve without dispersion has no inverse.
        """
        if np.any(self.b <= 0):
            raise ConfigError("a series without dispersion cannot be inverted", expected="sd > 0", got="sd 0")
        return (logit((inside(values) - LOWER_M) / RANGE_M) - self.a) / self.b

    def moments(
        self, shift: np.ndarray | float = 0.0, scale: np.ndarray | float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd (..., 9) of values(shift + scale * xi), xi standard normal, by Gauss-Hermite."""
        z = np.asarray(shift)[..., None] + np.asarray(scale)[..., None] * _NODES
        x = expit(self.a[..., None] + self.b[..., None] * z)
        mean = x @ _WEIGHTS
        variance = ((x - mean[..., None]) ** 2) @ _WEIGHTS
        return LOWER_M + RANGE_M * mean, RANGE_M * np.sqrt(variance)


def fit_curve(mean: np.ndarray, sd: np.ndarray) -> Curve:
    """The curve whose values have this mean and sd (both (..., 9)); `sd` is limited as in `limit_sd`.

    Raises:
        ConfigError: a mean on or outside its bounds.
    """
    mean, sd = np.broadcast_arrays(np.asarray(mean, float), np.asarray(sd, float))
    bad = ~((mean > LOWER_M) & (mean < UPPER_M))
    if bad.any():
        where = MACRO_SERIES[int(np.argwhere(bad)[0][-1])]
        raise ConfigError(
            "mean outside the bounds of its series",
            expected=f"between {where.lower:g} and {where.upper:g}",
            got=float(mean[bad][0]),
            where=where.name,
        )
    p = (mean - LOWER_M) / RANGE_M
    s = limit_sd(mean, sd) / RANGE_M
    narrow = s < _NARROW
    b = np.sqrt(np.log1p((np.where(narrow, 1.0, s) / (p * (1 - p))) ** 2))
    a = logit(p) + (p - 0.5) * b * b
    for _ in range(60):
        step_a, step_b = _newton_step(a, b, p, s)
        a = a - np.clip(step_a, -1.0, 1.0)
        b = np.clip(b - np.clip(step_b, -0.5, 0.5), 0.2 * b, None)
        if max(np.abs(np.where(narrow, 0, step_a)).max(), np.abs(np.where(narrow, 0, step_b)).max()) < 1e-12:
            break
    return Curve(np.where(narrow, logit(p), a), np.where(narrow, s / (p * (1 - p)), b))


def _newton_step(a: np.ndarray, b: np.ndarray, p: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton step for E x = p, E x^2 = p^2 + s^2 in (a, b)."""
    x = expit(a[..., None] + b[..., None] * _NODES)
    slope = x * (1 - x)
    f1 = x @ _WEIGHTS - p
    f2 = (x * x) @ _WEIGHTS - p * p - s * s
    f1a, f1b = slope @ _WEIGHTS, (slope * _NODES) @ _WEIGHTS
    f2a, f2b = (2 * x * slope) @ _WEIGHTS, (2 * x * slope * _NODES) @ _WEIGHTS
    determinant = f1a * f2b - f1b * f2a
    determinant = np.where(np.abs(determinant) < 1e-300, 1e-300, determinant)
    return (f1 * f2b - f1b * f2) / determinant, (f1a * f2 - f1 * f2a) / determinant


def hermite_weights(curve: Curve) -> np.ndarray:
    """(9, K) coefficients c: values i and j correlate with sum_k c_ik c_jk corr(z_i, z_j)^k, k = 1..K."""
    x = expit(curve.a[:, None] + curve.b[:, None] * _NODES)
    columns = []
    for order in range(1, _N_HERMITE + 1):
        unit = np.zeros(order + 1)
        unit[order] = 1.0
        polynomial = hermeval(_NODES, unit) / np.exp(0.5 * gammaln(order + 1))
        columns.append((x * polynomial) @ _WEIGHTS)
    weights = np.stack(columns, axis=1)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def value_correlation(c_i: np.ndarray, c_j: np.ndarray, r: float) -> float:
    """Correlation of two values whose normals correlate with r."""
    return float(np.sum(c_i * c_j * r ** np.arange(1, _N_HERMITE + 1)))


def solve_monotone(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """x in [low, high] with function(x) = target; the nearer end where the target lies beyond it."""
    at_low, at_high = function(low) - target, function(high) - target
    if at_low >= 0:
        return low
    if at_high <= 0:
        return high
    return float(brentq(lambda x: function(x) - target, low, high, xtol=1e-13))
