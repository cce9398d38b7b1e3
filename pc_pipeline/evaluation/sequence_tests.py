"""Whole-sample tests of payment histories: survival, a classifier that tells them apart, memorisation.

Here: rows for `sequences`: (figure, value, low, high, goal, passed, note). The log-rank test and the
classifier are scipy's and scikit-learn's, which the package has anyway. Not here: rates (`sequence_rates`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
from scipy.stats import CensoredData, logrank
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from pc_pipeline.loans.payment_status import DEFAULT
from pc_pipeline.schemas.states import N_STATUSES

_SMALLEST_P: Final = 0.01
_SURVIVAL_TOLERANCE: Final = 0.01
_COPY_TOLERANCE: Final = 0.02
_DISTANCE_SHARE: Final = 0.9
_CHUNK: Final = 256


def survival_curve(codes: np.ndarray) -> np.ndarray:
    """(T,) Kaplan-Meier share not in default after each month; other ends censor."""
    alive = np.concatenate(
        [np.ones((len(codes), 1), bool), (codes[:, :-1] >= 0) & (codes[:, :-1] < DEFAULT)], 1
    )
    at_risk = (alive & (codes >= 0)).sum(axis=0)
    defaults = (alive & (codes == DEFAULT)).sum(axis=0)
    return np.cumprod(1.0 - defaults / np.maximum(at_risk, 1))


def _times(codes: np.ndarray) -> CensoredData:
    months = (codes >= 0).sum(axis=1)
    defaulted = (codes == DEFAULT).any(axis=1)
    return CensoredData(uncensored=months[defaulted], right=months[~defaulted])


def default_survival(real: np.ndarray, synthetic: np.ndarray) -> tuple[tuple[Any, ...], pl.DataFrame]:
    """Largest gap of the two curves, judged by size or by the log-rank test; and the curves."""
    a, b = survival_curve(real), survival_curve(synthetic)
    gap = float(np.abs(a - b).max())
    at = int(np.abs(a - b).argmax())
    se = float(np.sqrt(a[at] * (1 - a[at]) / len(real) + b[at] * (1 - b[at]) / len(synthetic)))
    some = (real == DEFAULT).any() and (synthetic == DEFAULT).any()
    p = float(logrank(_times(real), _times(synthetic)).pvalue) if some else 1.0
    row = (
        "survival: largest gap",
        gap,
        max(gap - 1.96 * se, 0.0),
        gap + 1.96 * se,
        f"<= {_SURVIVAL_TOLERANCE:g}, or log-rank p >= {_SMALLEST_P:g}",
        gap <= _SURVIVAL_TOLERANCE or p >= _SMALLEST_P,
        f"log-rank p {p:.3f}, month {at + 1}",
    )
    curve = pl.DataFrame({"month": np.arange(1, len(a) + 1), "real": a, "synthetic": b})
    return row, curve


def history_inputs(codes: np.ndarray) -> np.ndarray:
    """(N, D) what a classifier sees: every month, counts of statuses and moves, changes, length."""
    known = codes >= 0
    counts = np.stack([(codes == code).sum(axis=1) for code in range(N_STATUSES)], axis=1)
    now, after = codes[:, :-1].astype(int), codes[:, 1:].astype(int)
    moved = (now >= 0) & (after >= 0)
    moves = np.zeros((len(codes), 25))
    inside = moved & (now < 5) & (after < 5)
    np.add.at(moves, (np.nonzero(inside)[0], (now * 5 + after)[inside]), 1.0)
    changes = (moved & (now != after)).sum(axis=1)
    returns = ((codes[:, 2:] > 1) & (codes[:, :-2] > 1) & (codes[:, 1:-1] <= 1)).sum(axis=1)
    return np.column_stack([codes, counts, moves, changes, returns, known.sum(axis=1)]).astype(np.float32)


def two_sample_auc(
    real: np.ndarray,
    synthetic: np.ndarray,
    real_features: np.ndarray | None,
    synthetic_features: np.ndarray | None,
    largest: float,
    seed: int,
) -> tuple[Any, ...]:
    """AUC of boosted trees that learn to tell the samples apart, on halves they did not learn from."""
    count = min(len(real), len(synthetic))
    x = [history_inputs(real[:count]), history_inputs(synthetic[:count])]
    if real_features is not None and synthetic_features is not None:
        x = [
            np.column_stack([x[0], real_features[:count]]),
            np.column_stack([x[1], synthetic_features[:count]]),
        ]
    inputs = np.concatenate(x)
    label = np.repeat([0, 1], count)
    # Both histories of a borrower fall into the same half, so that features alone tell nothing.
    half = np.tile(np.random.default_rng(seed).random(count) < 0.5, 2)
    answers = np.empty(2 * count)
    for side in (True, False):
        trees = HistGradientBoostingClassifier(
            max_iter=80, max_leaf_nodes=15, l2_regularization=5.0, random_state=seed
        )
        trees.fit(inputs[half == side], label[half == side])
        answers[half != side] = trees.predict_proba(inputs[half != side])[:, 1]
    auc = float(
        np.mean([roc_auc_score(label[half == side], answers[half == side]) for side in (True, False)])
    )
    se = _auc_error(auc, count)
    return (
        "two-sample AUC",
        auc,
        auc - 1.96 * se,
        auc + 1.96 * se,
        f"<= {largest:g}",
        auc <= largest,
        f"{count:,} histories a side, two folds",
    )


def _auc_error(auc: float, count: int) -> float:
    """Hanley and McNeil (1982), eq. 1."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (count - 1) * (q1 - auc**2) + (count - 1) * (q2 - auc**2)
    return float(np.sqrt(max(variance, 0.0)) / count)


def copy_rates(real: np.ndarray, synthetic: np.ndarray) -> tuple[Any, ...]:
    """Share of synthetic histories that equal a real one, less that among real ones themselves.

    Plain histories (always on time) are shared by any two samples of one law; what counts is the excess.
    """
    half = len(real) // 2
    known = {row.tobytes() for row in real[:half]}
    fresh = np.array([row.tobytes() in known for row in real[half:]])
    copied = np.array([row.tobytes() in known for row in synthetic])
    excess = float(copied.mean() - fresh.mean())
    se = float(np.sqrt(copied.var() / len(copied) + fresh.var() / max(len(fresh), 1)))
    return (
        "exact copies: excess share",
        excess,
        excess - 1.96 * se,
        excess + 1.96 * se,
        f"<= {_COPY_TOLERANCE:g}, or within noise",
        excess <= max(_COPY_TOLERANCE, 2.58 * se),
        f"synthetic {copied.mean():.3f}, real {fresh.mean():.3f}",
    )


def _nearest(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) months in which a history differs from the most similar other one."""
    hot = _one_hot(others)
    found = np.empty(len(codes))
    for low in range(0, len(codes), _CHUNK):
        same = _one_hot(codes[low : low + _CHUNK]) @ hot.T
        found[low : low + _CHUNK] = codes.shape[1] - same.max(axis=1)
    return found


def _one_hot(codes: np.ndarray) -> np.ndarray:
    eye = np.eye(N_STATUSES + 1, dtype=np.float32)
    return eye[codes].reshape(len(codes), -1)


def neighbour_distance(real: np.ndarray, synthetic: np.ndarray, most: int = 1500) -> tuple[Any, ...]:
    """Mean distance to the nearest real history, synthetic over real: below 1, learned by heart."""
    half = len(real) // 2
    base, fresh, made = real[:half][: 2 * most], real[half:][:most], synthetic[:most]
    own, ours = _nearest(fresh, base), _nearest(made, base)
    mean = max(float(own.mean()), 1e-9)
    ratio = float(ours.mean()) / mean
    se = float(np.sqrt(ours.var() / len(ours) + ratio**2 * own.var() / max(len(own), 1)) / mean)
    return (
        "nearest neighbour: distance ratio",
        ratio,
        ratio - 1.96 * se,
        ratio + 1.96 * se,
        f">= {_DISTANCE_SHARE:g}, or within noise of 1",
        ratio >= _DISTANCE_SHARE or ratio + 2.58 * se >= 1.0,
        f"synthetic {ours.mean():.2f}, real {own.mean():.2f} months differ",
    )
