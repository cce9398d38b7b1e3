"""The linear law of macro paths, fitted to sample moments by penalised maximum likelihood.

Here: `PathMoments` (all that the fit needs of a sample), `LinearLaw` and `fit_law`. Not here: what is
done with it (`training.macro_start`), the network it starts (`models.macro_vae`). Formulas (7)-(8) of
docs/methods/macro_vae.md.

    y = m_s + sigma_s u,   u_0 ~ N(0, F),   u_t = Phi u_{t-1} + N(0, Q)

Centre and log scale of each scenario and series are splines whose second differences are penalised. The
weight of each penalty is the one that makes the data likeliest with the curve integrated out
(generalised Fellner-Schall steps: Wood and Fasiolo 2017), so a flat curve costs two numbers however many
knots it has. Numpy, double precision: (T M)^3 operations a step whatever the number of paths is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.linalg import block_diag, cho_factor, cho_solve, solve_discrete_lyapunov, solve_triangular
from scipy.linalg.lapack import dpotri

from pc_pipeline.schemas.units import N_MACRO

FLOOR: Final = 1e-3  # smallest dispersion of a series, scaled units: keeps a constant series finite
MAX_RADIUS: Final = 0.995
_WEIGHTS: Final = (1e-4, 1e10)  # smallest and largest penalty
_LONGEST_STEP: Final = 0.5  # of a log scale in one round


@dataclass(frozen=True, slots=True, eq=False)
class PathMoments:
    """Sample moments of one scenario's scaled paths.

    Attributes:
        n: number of paths.
        mean: (T M,) mean path, month by month. covariance: (T M, T M) about it, divided by n.
    """

    n: int
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, paths_NTM: np.ndarray) -> PathMoments:
        """Moments of paths (N, T, M)."""
        flat = paths_NTM.reshape(len(paths_NTM), -1).astype(float)
        mean = flat.mean(0)
        gap = flat - mean
        return cls(len(flat), mean, gap.T @ gap / len(flat) + FLOOR**2 * np.eye(flat.shape[1]))

    @property
    def n_months(self) -> int:
        """Months of a path."""
        return len(self.mean) // N_MACRO

    def about(self, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(T M, T M) second moments of u = (y - centre) / scale."""
        gap = self.mean - centre
        return (self.covariance + np.outer(gap, gap)) / np.outer(scale, scale)


@dataclass(frozen=True, slots=True, eq=False)
class LinearLaw:
    """The linear law of all scenarios.

    Attributes:
        centre, log_scale: scenario -> (G, M) spline coefficients.
        phi: (M, M). shocks: (M, M) covariance Q. first: (M, M) covariance F of the first month.
        centre_weight, scale_weight: scenario -> (M,) penalties in force.
    """

    centre: dict[int, np.ndarray]
    log_scale: dict[int, np.ndarray]
    phi: np.ndarray
    shocks: np.ndarray
    first: np.ndarray
    centre_weight: dict[int, np.ndarray]
    scale_weight: dict[int, np.ndarray]

    def whitener(self, n_months: int) -> np.ndarray:
        """(T M, T M) A with A u = eps, eq. (2) of the page inverted; block lower bidiagonal."""
        first, later = (
            solve_triangular(np.linalg.cholesky(c), np.eye(N_MACRO), lower=True)
            for c in (self.first, self.shocks)
        )
        whole = block_diag(first, *[later] * (n_months - 1))
        for month in range(1, n_months):
            rows = slice(month * N_MACRO, (month + 1) * N_MACRO)
            whole[rows, (month - 1) * N_MACRO : month * N_MACRO] = -later @ self.phi
        return whole

    def curves(self, code: int, basis_TG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centre and scale of a scenario, each (T M,)."""
        return (basis_TG @ self.centre[code]).ravel(), np.exp(basis_TG @ self.log_scale[code]).ravel()

    def negative_log_likelihood(self, samples: dict[int, PathMoments], basis_TG: np.ndarray) -> float:
        """Nats per path, without the constant."""
        white = self.whitener(len(basis_TG))
        precision, log_det = white.T @ white, -np.log(np.diag(white)).sum()
        total = 0.0
        for code, sample in samples.items():
            centre, scale = self.curves(code, basis_TG)
            squares = float((precision * sample.about(centre, scale)).sum())
            total += sample.n * (0.5 * squares + np.log(scale).sum() + log_det)
        return total / sum(sample.n for sample in samples.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """How Phi, Q and F are estimated.

    Attributes:
        pull: strength that draws the effect of one series on another to 0.
        stationary: F is what the dynamics settle at; else the first month has a dispersion of its own.
    """

    pull: float
    stationary: bool


def fit_law(
    law: LinearLaw, samples: dict[int, PathMoments], basis_TG: np.ndarray, dynamics: Dynamics, rounds: int
) -> LinearLaw:
    """Rounds of: every centre, every scale, then the dynamics.

    Args:
        law: where to start. samples: scenario -> moments. basis_TG: (T, G) splines.
    """
    for _ in range(rounds):
        white = law.whitener(len(basis_TG))
        precision = white.T @ white
        unwhite = solve_triangular(white, np.eye(len(white)), lower=True)
        covariance = unwhite @ unwhite.T
        centre, log_scale = dict(law.centre), dict(law.log_scale)
        centre_weight, scale_weight = dict(law.centre_weight), dict(law.scale_weight)
        for code, sample in samples.items():
            _, scale = law.curves(code, basis_TG)
            centre[code], centre_weight[code] = _fit_centre(
                sample, precision / np.outer(scale, scale), basis_TG, law.centre_weight[code]
            )
            squares = sample.about((basis_TG @ centre[code]).ravel(), scale)
            log_scale[code], scale_weight[code] = _fit_scale(
                sample.n,
                squares,
                precision,
                covariance,
                basis_TG,
                law.log_scale[code],
                law.scale_weight[code],
            )
        law = dataclasses.replace(
            law,
            centre=centre,
            log_scale=log_scale,
            centre_weight=centre_weight,
            scale_weight=scale_weight,
        )
        law = fit_dynamics(law, samples, basis_TG, dynamics)
    return law


# ---- curves ---------------------------------------------------------------------------------


def roughness_matrix(n_knots: int) -> np.ndarray:
    """(G, G) S with c' S c = sum of squared second differences."""
    second = np.diff(np.eye(n_knots), n=2, axis=0)
    return second.T @ second


def _to_knots(matrix: np.ndarray, basis_TG: np.ndarray) -> np.ndarray:
    """(G M, G M) B' X B of a (T M, T M) matrix over months and series."""
    n_months, n_knots = basis_TG.shape
    blocks = matrix.reshape(n_months, N_MACRO, n_months, N_MACRO)
    left = np.tensordot(basis_TG, blocks, axes=(0, 0))  # G M T M
    both = np.tensordot(left, basis_TG, axes=(2, 0))  # G M M G
    return both.transpose(0, 1, 3, 2).reshape(n_knots * N_MACRO, n_knots * N_MACRO)


def _penalty(weight_M: np.ndarray, n_knots: int) -> np.ndarray:
    return np.kron(roughness_matrix(n_knots), np.diag(weight_M))


def _fit_centre(
    sample: PathMoments, precision: np.ndarray, basis_TG: np.ndarray, weight_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(G, M) generalised least-squares centre, and the next penalties."""
    n_knots = basis_TG.shape[1]
    information = sample.n * _to_knots(precision, basis_TG)
    pull = (precision @ sample.mean).reshape(-1, N_MACRO)
    system = information + _penalty(weight_M, n_knots)
    factor = cho_factor(system + 1e-10 * np.trace(system) / len(system) * np.eye(len(system)), lower=True)
    knots = cho_solve(factor, sample.n * (basis_TG.T @ pull).ravel()).reshape(n_knots, N_MACRO)
    return knots, _next_weight(factor, knots, weight_M)


def _fit_scale(
    n: int,
    squares: np.ndarray,
    precision: np.ndarray,
    covariance: np.ndarray,
    basis_TG: np.ndarray,
    knots: np.ndarray,
    weight_M: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of Fisher scoring for the log scales (G, M), and the next penalties.

    The score of a log scale is n (diag(precision squares) - 1), its information n (1 + covariance o
    precision), o entry by entry.
    """
    n_knots = basis_TG.shape[1]
    score = n * ((precision * squares).sum(1) - 1.0).reshape(-1, N_MACRO)
    information = n * _to_knots(np.eye(len(precision)) + covariance * precision, basis_TG)
    penalty = _penalty(weight_M, n_knots)
    system = information + penalty
    factor = cho_factor(system + 1e-10 * np.trace(system) / len(system) * np.eye(len(system)), lower=True)
    uphill = (basis_TG.T @ score).ravel() - penalty @ knots.ravel()
    step = cho_solve(factor, uphill).reshape(n_knots, N_MACRO)
    step *= min(1.0, _LONGEST_STEP / max(float(np.abs(step).max()), 1e-12))
    moved = knots + step
    return moved, _next_weight(factor, moved, weight_M)


def _next_weight(factor: tuple[np.ndarray, bool], knots: np.ndarray, weight_M: np.ndarray) -> np.ndarray:
    """(M,) penalties after one Fellner-Schall step: weight (rank / weight - tr(V S)) / c' S c."""
    n_knots = len(knots)
    rough = roughness_matrix(n_knots)
    triangle, _ = dpotri(factor[0], lower=factor[1])  # a third of the work of solving for the identity
    inverse = np.tril(triangle) + np.tril(triangle, -1).T
    blocks = inverse.reshape(n_knots, N_MACRO, n_knots, N_MACRO)
    spread = np.einsum("gmhm,gh->m", blocks, rough)
    roughness = np.einsum("gm,gh,hm->m", knots, rough, knots)
    left = np.maximum((n_knots - 2) / weight_M - spread, 0.0)
    return np.clip(weight_M * left / np.maximum(roughness, 1e-14), *_WEIGHTS)


# ---- dynamics -------------------------------------------------------------------------------


def fit_dynamics(
    law: LinearLaw, samples: dict[int, PathMoments], basis_TG: np.ndarray, dynamics: Dynamics
) -> LinearLaw:
    """Phi by penalised regression, Q from its residuals, F from the first month or from both."""
    n_months, n_paths = len(basis_TG), sum(sample.n for sample in samples.values())
    total = np.zeros((n_months * N_MACRO, n_months * N_MACRO))
    for code, sample in samples.items():
        total += sample.n / n_paths * sample.about(*law.curves(code, basis_TG))
    blocks = total.reshape(n_months, N_MACRO, n_months, N_MACRO)
    here = np.arange(n_months)
    same, next_one = blocks[here, :, here], blocks[here[1:], :, here[:-1]]  # E u_t u_t', E u_t u_{t-1}'
    before, after, cross = same[:-1].mean(0), same[1:].mean(0), next_one.mean(0)
    phi, shocks = _regress(before, after, cross, dynamics.pull)
    shocks = _shrunk(shocks, n_paths * (n_months - 1))
    first = _settled(phi, shocks) if dynamics.stationary else None
    if first is None:
        first = _shrunk(blocks[0, :, 0], n_paths)
    return dataclasses.replace(law, phi=phi, shocks=shocks, first=first)


def _regress(
    before: np.ndarray, after: np.ndarray, cross: np.ndarray, pull: float
) -> tuple[np.ndarray, np.ndarray]:
    """(Phi, Q): minimises tr Q^-1 E r r' + pull sum_{i != j} Phi_ij^2 / Q_ii, r = u_t - Phi u_{t-1}."""
    eye = np.eye(N_MACRO)
    gram = before + 1e-6 * eye
    phi = np.linalg.solve(gram, cross.T).T

    def residual(phi: np.ndarray) -> np.ndarray:
        moments = after - phi @ cross.T - cross @ phi.T + phi @ before @ phi.T
        return 0.5 * (moments + moments.T) + FLOOR**2 * eye

    for _ in range(3 if pull > 0 else 0):
        shocks = residual(phi)
        weight = np.linalg.inv(shocks)
        penalty = np.diag((pull * (1 - eye) / np.diag(shocks)[:, None]).ravel())
        solved = np.linalg.solve(np.kron(weight, gram) + penalty, (weight @ cross).ravel())
        phi = solved.reshape(N_MACRO, N_MACRO)
    return phi, residual(phi)


def _shrunk(moments: np.ndarray, n_rows: int) -> np.ndarray:
    """Moments drawn a little to their diagonal when rows are few."""
    share = N_MACRO / (N_MACRO + n_rows)
    return (1 - share) * moments + share * np.diag(np.diag(moments))


def _settled(phi: np.ndarray, shocks: np.ndarray) -> np.ndarray | None:
    """(M, M) S = Phi S Phi' + Q; None where the dynamics do not settle."""
    if np.abs(np.linalg.eigvals(phi)).max() > MAX_RADIUS:
        return None
    settled = solve_discrete_lyapunov(phi, shocks)
    return 0.5 * (settled + settled.T)
