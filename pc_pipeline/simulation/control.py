"""`Control`: what loans' own luck did on each path, and how much of it to take out of each measure.

Here: the coefficients. Not here: where luck comes from (`simulation.martingale`, `simulation.own_luck`), the
estimators (`simulation.estimators`).

Given the macro path, luck M and M^2 - Q have mean zero (Q: the sum of squares), so any multiple of them that
is known from the macro path may be taken out of a path's contribution without bias. With predicted loss m,
luck near normal with variance s^2 and a = (m - v) / s, the projections of a loss L = m + M on them are
(expansion in Hermite polynomials; phi, Phi: normal density and distribution)

    L               M                                                                        (1)
    (L - v)+        Phi(a) M + phi(a) / (2 s) (M^2 - Q)                                      (2)
    1{L > v}        phi(a) / s M - a phi(a) / (2 s^2) (M^2 - Q)                              (3)

Where paths were drawn in strata, the guess of the loss that ordered them, less its mean over the stratum's
candidates (`offset_P`), has mean zero too. It is taken out with the slope of the smoothed measure, 1, Phi(a)
and phi(a) / s, averaged over each stratum.

(2) leaves 3 % of the ramp's variance where the predicted loss is at v, less elsewhere; (3) leaves a third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import ndtr

from pc_pipeline.core.errors import SimulationError

_ROOT_TWO_PI: Final = np.sqrt(2 * np.pi)
_PER_GROUP: Final = 40  # paths that share a coefficient found by regression


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Loans' own luck along each path, in the unit of the losses.

    Attributes:
        luck_P: M, mean zero given the macro path. square_P: Q, such that M^2 - Q has mean zero too.
        predicted_P: loss predicted from the macro path alone.
        offset_P: a guess of the loss less its mean over the stratum, zero where paths are independent.
    """

    luck_P: np.ndarray
    square_P: np.ndarray
    predicted_P: np.ndarray
    offset_P: np.ndarray

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.luck_P, self.square_P, self.predicted_P, self.offset_P)}
        if len(shapes) != 1 or self.luck_P.ndim != 1:
            raise SimulationError("a control covers every path", expected="four (P,) arrays", got=shapes)

    def of_mean(self) -> np.ndarray:
        """(P,) eq. (1)."""
        return self.luck_P + self.offset_P

    def of_excess(
        self, v: float, losses_P: np.ndarray, weights_P: np.ndarray, strata_P: np.ndarray | None
    ) -> np.ndarray:
        """(P,) eq. (2)."""
        s, a, density = self._standing(v, losses_P, weights_P)
        slope = ndtr(a)
        taken = slope * self.luck_P + density / (2 * s) * (self.luck_P**2 - self.square_P)
        return taken + _by_stratum(slope, strata_P) * self.offset_P

    def of_exceedance(
        self, v: float, losses_P: np.ndarray, weights_P: np.ndarray, strata_P: np.ndarray | None
    ) -> np.ndarray:
        """(P,) eq. (3)."""
        s, a, density = self._standing(v, losses_P, weights_P)
        slope = density / s
        taken = slope * self.luck_P - a * density / (2 * s * s) * (self.luck_P**2 - self.square_P)
        return taken + _by_stratum(slope, strata_P) * self.offset_P

    def of_any(self, target_P: np.ndarray, weights_P: np.ndarray) -> np.ndarray:
        """(P,) regression of anything on luck, among paths of like predicted loss."""
        out = np.zeros(target_P.size)
        order = np.argsort(self.predicted_P, kind="stable")
        for group in np.array_split(order, max(target_P.size // _PER_GROUP, 1)):
            weights, luck = weights_P[group], self.luck_P[group]
            centred = target_P[group] - np.average(target_P[group], weights=weights + 1e-300)
            squared = float(weights @ luck**2)
            if squared > 0:
                out[group] = float(weights @ (centred * luck)) / squared * luck
        return out

    def _standing(
        self, v: float, losses_P: np.ndarray, weights_P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(s, a, phi(a)): the level of predictions and the variance of luck set to those of the run."""
        level = float(weights_P @ self.predicted_P)
        m = self.predicted_P * (float(weights_P @ (losses_P - self.luck_P)) / level if level > 0 else 1.0)
        variance = float(weights_P @ self.square_P) / max(float(weights_P @ m), 1e-300) * m
        s = np.sqrt(np.maximum(variance, 1e-24))
        a = (m - v) / s
        return s, a, np.exp(-0.5 * a**2) / _ROOT_TWO_PI


def _by_stratum(values_P: np.ndarray, strata_P: np.ndarray | None) -> np.ndarray:
    """(P,) mean over each stratum."""
    if strata_P is None:
        return values_P
    _, place = np.unique(strata_P, return_inverse=True)
    return (np.bincount(place, weights=values_P) / np.bincount(place))[place]
