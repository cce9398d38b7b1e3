"""Measures of predicted moves: log-loss with its error, calibration, accuracy, share of a gap closed.

Here: pure functions of probabilities and what happened. Not here: whose probabilities (`challengers`), the
table of scores (`scoring`).

Loan-months of one loan are not independent, so standard errors are clustered by loan:
se = sqrt(C / (C - 1) sum_c (sum_{i in c} (l_i - mean))^2) / n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pc_pipeline.core.errors import DataError

FLOOR: Final = 1e-12  # a probability below it counts as this: an impossible event costs 27.6 nats


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over loan-months.

    Attributes:
        value: the mean. se: its standard error, clustered; NaN with fewer than two clusters. n: terms.
    """

    value: float
    se: float
    n: int


def log_losses(probabilities: np.ndarray, happened: np.ndarray) -> np.ndarray:
    """(N,) nats: -log of the probability of what happened; probabilities (N, K), happened (N,).

    Raises:
        DataError: shapes differ, or rows do not sum to 1.
    """
    if probabilities.ndim != 2 or happened.shape != probabilities.shape[:1]:
        raise DataError("one row per event", expected=probabilities.shape[:1], got=happened.shape)
    if len(happened) and not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-4):
        worst = float(probabilities.sum(axis=1)[np.abs(probabilities.sum(axis=1) - 1).argmax()])
        raise DataError("rows of probabilities must sum to 1", expected=1.0, got=worst)
    return -np.log(np.maximum(probabilities[np.arange(len(happened)), happened], FLOOR))


def clustered_mean(values: np.ndarray, cluster: np.ndarray) -> Estimate:
    """Mean of (N,) values with the standard error over (N,) cluster labels.

    Raises:
        DataError: nothing to average.
    """
    if len(values) == 0:
        raise DataError("nothing to average", expected="at least one value", got=0)
    mean = float(values.mean())
    _, place = np.unique(cluster, return_inverse=True)
    sums = np.bincount(place, weights=values - mean)
    count = len(sums)
    spread = float((sums**2).sum()) * count / max(count - 1, 1)
    se = np.sqrt(spread) / len(values) if count > 1 else float("nan")
    return Estimate(value=mean, se=float(se), n=len(values))


def happened_over_expected(probability: np.ndarray, event: np.ndarray, cluster: np.ndarray) -> Estimate:
    """How often an event happened over how often it was expected, (N,) each; the error clustered by loan.

    A Poisson interval takes loan-months as independent; a few loans miss most months, so where a model does
    not know which, the clustered error is the larger one.

    Raises:
        DataError: nothing was expected.
    """
    expected = float(probability.sum())
    if expected <= 0:
        raise DataError("nothing was expected", expected="a positive sum", got=expected)
    excess = clustered_mean(event.astype(float) - probability, cluster)
    return Estimate(
        value=1.0 + excess.value * excess.n / expected, se=excess.se * excess.n / expected, n=excess.n
    )


def gap_closed(ours: np.ndarray, reference: np.ndarray, oracle: np.ndarray, cluster: np.ndarray) -> Estimate:
    """Share of the gap from reference to oracle that a model closes: 1 is the oracle, 0 the reference.

    From log-losses (N,) of the same events; the error is that of a ratio of clustered means (delta
    method), so noise that all three share cancels.
    """
    gap = float((reference - oracle).mean())
    if gap == 0.0:
        return Estimate(value=float("nan"), se=float("nan"), n=len(ours))
    share = float((reference - ours).mean()) / gap
    linear = clustered_mean(((reference - ours) - share * (reference - oracle)) / gap, cluster)
    return Estimate(value=share, se=linear.se, n=len(ours))


def accuracy(probabilities: np.ndarray, happened: np.ndarray) -> float:
    """Share of events that were the most probable one. 'Nothing changes' scores high on loan panels."""
    return float((probabilities.argmax(axis=1) == happened).mean())


def calibration_slope(
    probability: np.ndarray, event: np.ndarray, steps: int = 50
) -> tuple[float, float, float]:
    """(slope, its se, intercept) of a logistic regression of an event on the logit of its probability.

    1 and 0 are perfect; a slope below 1 says the probabilities are too extreme. Events of probability 0
    or 1 are left out. NaN where only one outcome occurs, or one probability.

    Args:
        probability, event: (N,) predicted probability, and whether it happened.
    """
    inside = (probability > FLOOR) & (probability < 1.0 - 1e-9)
    p, y = probability[inside].astype(float), event[inside].astype(float)
    if len(y) == 0 or y.min() == y.max() or np.ptp(p) < 1e-9:
        return float("nan"), float("nan"), float("nan")
    x = np.column_stack([np.ones(len(p)), np.log(p) - np.log1p(-p)])
    beta = np.array([0.0, 1.0])
    for _ in range(steps):
        fitted = 1.0 / (1.0 + np.exp(-np.clip(x @ beta, -35, 35)))
        weight = fitted * (1.0 - fitted)
        information = (x * weight[:, None]).T @ x + 1e-10 * np.eye(2)
        step = np.linalg.solve(information, x.T @ (y - fitted))
        beta = beta + np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    se = float(np.sqrt(np.linalg.inv(information)[1, 1]))
    return float(beta[1]), se, float(beta[0])
