"""The generator's law written down: a Gaussian in opened values, and what it becomes given some of them.

Here: `GaussianLaw` and `exact_law`, against which a network's conditional paths can be held. Not here:
drawing (`generator`; its pins use the same law), the marginal curves (`marginals`).

A value x between its bounds l, u is opened as o = logit((x - l) / (u - l)). The generator draws o = a + b z
with z Gaussian, so o is exactly Gaussian whatever the bounds are, and a condition on x is one on o: bounds
and skewed marginals need no approximation. Only months that lie on a bound to the last digit are outside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.scenarios.definitions import ScenarioDefinition
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.scenarios.marginals import LOWER_M, RANGE_M, inside
from pc_pipeline.schemas.units import MACRO_NAMES, N_MACRO

Given = tuple[str, int, float]  # series, month from 0, value in original units


def open_values(values: np.ndarray) -> np.ndarray:
    """Opened values (..., 9) of macro values."""
    return logit((inside(values) - LOWER_M) / RANGE_M)


@dataclass(frozen=True, slots=True, eq=False)
class GaussianLaw:
    """Opened values of a whole path.

    Attributes:
        mean: (T 9,), month by month. covariance: (T 9, T 9).
    """

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def n_months(self) -> int:
        """Months of a path."""
        return len(self.mean) // N_MACRO

    def mean_path(self) -> np.ndarray:
        """(T, 9) mean of opened values."""
        return self.mean.reshape(-1, N_MACRO)

    def sd_path(self) -> np.ndarray:
        """(T, 9) standard deviation of opened values; 0 where they are given."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 0.0)).reshape(-1, N_MACRO)

    def median_path(self) -> np.ndarray:
        """(T, 9) median in original units."""
        return LOWER_M + RANGE_M * expit(self.mean_path())

    def given(self, values: Sequence[Given]) -> GaussianLaw:
        """The law given values at months (Gaussian conditioning).

        Raises:
            ConfigError: an unknown series, a month outside the path, or nothing given.
        """
        at, target = self._places(values)
        gain = np.linalg.solve(self.covariance[np.ix_(at, at)], self.covariance[at]).T
        mean = self.mean + gain @ (target - self.mean[at])
        return GaussianLaw(mean, self.covariance - gain @ self.covariance[at])

    def log_density(self, values: Sequence[Given]) -> float:
        """Log density of opened values at the places given."""
        at, target = self._places(values)
        gap, part = target - self.mean[at], self.covariance[np.ix_(at, at)]
        squared = float(gap @ np.linalg.solve(part, gap))
        return -0.5 * (squared + float(np.linalg.slogdet(2 * np.pi * part)[1]))

    def _places(self, values: Sequence[Given]) -> tuple[np.ndarray, np.ndarray]:
        if not values:
            raise ConfigError("nothing is given", expected="(series, month, value)", got="none")
        at, target = [], []
        for series, month, value in values:
            if series not in MACRO_NAMES or not 0 <= month < self.n_months:
                raise ConfigError(
                    "no such place on the path",
                    expected=f"one of the nine series, month 0..{self.n_months - 1}",
                    got=f"{series}, month {month}",
                )
            k = MACRO_NAMES.index(series)
            at.append(month * N_MACRO + k)
            target.append(float(open_values(np.where(np.arange(N_MACRO) == k, value, LOWER_M))[k]))
        return np.array(at), np.array(target)


def exact_law(generator: MacroScenarioGenerator, scenario: str | ScenarioDefinition) -> GaussianLaw:
    """Law of a scenario's paths without its pins (give them to `GaussianLaw.given`).

    cov(z_t, z_s) = A^(t - s) cov(z_s) for t >= s, then the curve's slope on either side.
    """
    curve, transition, covariance_T = generator.latent_law(scenario)
    n_months = len(curve.a)
    whole = np.zeros((n_months, N_MACRO, n_months, N_MACRO))
    for month in range(n_months):
        block = covariance_T[month]
        for later in range(month, n_months):
            whole[later, :, month] = block
            whole[month, :, later] = block.T
            block = transition @ block
    sd = np.sqrt(np.einsum("tmm->tm", covariance_T))
    slope = (curve.b / sd).ravel()
    size = n_months * N_MACRO
    return GaussianLaw(curve.a.ravel(), whole.reshape(size, size) * np.outer(slope, slope))
