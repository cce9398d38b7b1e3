"""Latent dynamics: the linear Gaussian process behind the nine series.

    z_t = A z_{t-1} + u_t,   u_t ~ N(0, Q),   stationary law N(0, S),  S = A S A' + Q with unit diagonal

Here: how stated persistences and shock correlations become A and Q, nearest correlation matrices, covariances
over time, conditioning on pinned values. Not here: the curve from z to macro values (`marginals`), the
numbers assumed (`assumptions`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.scenarios.marginals import (
    Curve,
    hermite_weights,
    solve_monotone,
    value_correlation,
)
from pc_pipeline.schemas.units import N_MACRO


def nearest_correlation(matrix: np.ndarray, floor: float = 1e-6, max_iterations: int = 500) -> np.ndarray:
    """Nearest correlation matrix in Frobenius norm (Higham 2002, alternating projections).

    Args:
        matrix: (n, n) symmetric, unit diagonal, perhaps indefinite.
        floor: smallest eigenvalue of the result.

    Returns:
        The matrix itself when it already is one.
    """
    current = np.array(matrix, dtype=float)
    if np.linalg.eigvalsh(current).min() >= floor:
        return current
    correction = np.zeros_like(current)
    for _ in range(max_iterations):
        candidate = current - correction
        values, vectors = np.linalg.eigh(candidate)
        projected = (vectors * np.maximum(values, floor)) @ vectors.T
        correction = projected - candidate
        previous, current = current, projected.copy()
        np.fill_diagonal(current, 1.0)
        if np.linalg.norm(current - previous) < 1e-12:
            break
    values, vectors = np.linalg.eigh(current)
    repaired = (vectors * np.maximum(values, floor)) @ vectors.T
    scale = 1.0 / np.sqrt(np.diag(repaired))
    return repaired * np.outer(scale, scale)


@dataclass(frozen=True, slots=True)
class LatentDynamics:
    """z_t = A z_{t-1} + u_t with unit stationary variances.

    Attributes:
        transition: (9, 9) A.
        shock_covariance: (9, 9) Q.
        stationary: (9, 9) S, a correlation matrix.
    """

    transition: np.ndarray
    shock_covariance: np.ndarray
    stationary: np.ndarray

    @classmethod
    def from_matrices(cls, transition: np.ndarray, shock_covariance: np.ndarray) -> LatentDynamics:
        """Rescale a stable linear process to unit stationary variances.

        Raises:
            ConfigError: the process explodes.
        """
        radius = float(np.abs(np.linalg.eigvals(transition)).max())
        if radius >= 1:
            raise ConfigError(
                "macro dynamics explode", expected="all eigenvalues inside 1", got=f"radius {radius:.4f}"
            )
        covariance = solve_discrete_lyapunov(transition, shock_covariance)
        sd = np.sqrt(np.diag(covariance))
        return cls(
            transition * (1 / sd)[:, None] * sd[None, :],
            shock_covariance / np.outer(sd, sd),
            covariance / np.outer(sd, sd),
        )

    @classmethod
    def from_stated(
        cls, curve: Curve, persistence: np.ndarray, shock_correlation: np.ndarray
    ) -> LatentDynamics:
        """The process whose *values* have the stated lag-1 autocorrelations and innovation correlations.

        The curve bends, so the normals need slightly other numbers than the values: both are solved for, pair
        by pair. The innovation of a value is x_t - mean - persistence (x_{t-1} - mean).

        Args:
            curve: (9,) stationary marginals.
            persistence: (9,) lag-1 autocorrelation of the values.
            shock_correlation: (9, 9) correlation of the values' innovations; projected to the nearest
                correlation matrix if it is none, and so is the solution.
        """
        weights = hermite_weights(curve)
        wanted = nearest_correlation(shock_correlation)
        phi = np.array([_solve_persistence(c, p) for c, p in zip(weights, persistence, strict=True)])
        shocks = np.eye(N_MACRO)
        for i in range(N_MACRO):
            for j in range(i):
                shocks[i, j] = shocks[j, i] = _solve_pair(
                    weights[i], weights[j], phi[i], phi[j], persistence[i], persistence[j], wanted[i, j]
                )
        shocks = nearest_correlation(shocks)
        scale = np.sqrt(1 - phi**2)
        return cls.from_matrices(np.diag(phi), shocks * np.outer(scale, scale))

    @property
    def shock_correlation(self) -> np.ndarray:
        """(9, 9) correlation of the shocks u_t."""
        sd = np.sqrt(np.diag(self.shock_covariance))
        return self.shock_covariance / np.outer(sd, sd)

    def variances(self, n_months: int, stationary_start: bool) -> np.ndarray:
        """(T, 9, 9) covariance of z_t: stationary, or of the noise since a known start at month -1."""
        if stationary_start:
            return np.broadcast_to(self.stationary, (n_months, N_MACRO, N_MACRO))
        covariances = np.zeros((n_months, N_MACRO, N_MACRO))
        current = np.zeros((N_MACRO, N_MACRO))
        for month in range(n_months):
            current = self.transition @ current @ self.transition.T + self.shock_covariance
            covariances[month] = current
        return covariances

    def decay(self, start: np.ndarray, n_months: int) -> np.ndarray:
        """(T, 9) mean of z_t given z at month -1."""
        means = np.empty((n_months, N_MACRO))
        current = start
        for month in range(n_months):
            current = self.transition @ current
            means[month] = current
        return means


def innovation_correlation(
    c_i: np.ndarray, c_j: np.ndarray, phi_i: float, phi_j: float, rho_i: float, rho_j: float, shock: float
) -> float:
    """Correlation of two values' innovations when their normals' shocks correlate with `shock`.

    c are Hermite weights, phi the persistences of the normals, rho those of the values.
    """
    r = shock * np.sqrt((1 - phi_i**2) * (1 - phi_j**2)) / (1 - phi_i * phi_j)
    same = value_correlation(c_i, c_j, r)
    i_leads = value_correlation(c_i, c_j, phi_j * r)  # x_i at t-1 with x_j at t
    j_leads = value_correlation(c_i, c_j, phi_i * r)  # x_i at t with x_j at t-1
    covariance = same * (1 + rho_i * rho_j) - rho_i * i_leads - rho_j * j_leads
    return float(covariance / np.sqrt((1 - rho_i**2) * (1 - rho_j**2)))


def _solve_persistence(c: np.ndarray, wanted: float) -> float:
    return solve_monotone(lambda phi: value_correlation(c, c, phi), float(wanted), 0.0, 1.0)


def _solve_pair(
    c_i: np.ndarray, c_j: np.ndarray, phi_i: float, phi_j: float, rho_i: float, rho_j: float, wanted: float
) -> float:
    return solve_monotone(
        lambda shock: innovation_correlation(c_i, c_j, phi_i, phi_j, rho_i, rho_j, shock), wanted, -1.0, 1.0
    )


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What pinned values do to the standardised noise of one scenario.

    Every path is corrected by gain @ (target - own value at the pins), which gives exact draws from the
    conditional law (Matheron's rule, Journel and Huijbregts 1978).

    Attributes:
        months, series: (n,) where the pins are.
        target: (n,) standardised pinned values.
        gain: (T, 9, n) kriging weights.
        mean, sd: (T, 9) of the standardised noise given the pins.
        distance: squared Mahalanobis distance of the pins from the unpinned law, chi-square with n degrees.
    """

    months: np.ndarray
    series: np.ndarray
    target: np.ndarray
    gain: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    distance: float

    def apply(self, z: np.ndarray) -> np.ndarray:
        """Conditioned copy of standardised noise z (T, B, 9)."""
        gap = self.target[:, None] - z[self.months, :, self.series]
        return z + np.einsum("tmn,nb->tbm", self.gain, gap)


def condition(
    dynamics: LatentDynamics,
    covariance_T: np.ndarray,
    months: np.ndarray,
    series: np.ndarray,
    target: np.ndarray,
) -> Conditioning:
    """Condition the standardised noise on `target` at (months, series).

    Args:
        covariance_T: (T, 9, 9) of z_t, from `LatentDynamics.variances`.
        target: (n,) in standard deviations of z.
    """
    n_months = covariance_T.shape[0]
    sd = np.sqrt(np.einsum("tmm->tm", covariance_T))
    powers = [np.eye(N_MACRO)]
    for _ in range(n_months):
        powers.append(powers[-1] @ dynamics.transition)
    cross = np.empty((n_months, N_MACRO, len(months)))
    for pin, (month, which) in enumerate(zip(months, series, strict=True)):
        for t in range(n_months):
            if t >= month:
                cross[t, :, pin] = (powers[t - month] @ covariance_T[month])[:, which]
            else:
                cross[t, :, pin] = (covariance_T[t] @ powers[month - t].T)[:, which]
        cross[:, :, pin] /= sd * sd[month, which]
    at_pins = cross[months, series]
    gain = np.linalg.solve(at_pins, cross.reshape(-1, len(months)).T).T.reshape(cross.shape)
    spread = 1.0 - np.einsum("tmn,tmn->tm", gain, cross)
    distance = float(target @ np.linalg.solve(at_pins, target))
    return Conditioning(
        months, series, target, gain, gain @ target, np.sqrt(np.clip(spread, 0, None)), distance
    )
