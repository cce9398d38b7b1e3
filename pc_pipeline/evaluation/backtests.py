"""Does a predicted value at risk hold up? Coverage and independence of its exceptions, and the whole law.

Here: `exceptions`, the tests of Kupiec (1995) and Christoffersen (1998), a test of the probability integral
transform, `backtest` (all of them as one frame), `holm`. Not here: who predicts (`engines.fidelity`).

With T months of which N lose more than the VaR at level q, p = 1 - q and hit share h = N / T,

    LR_uc  = -2 [ (T-N) log(1-p) + N log p - (T-N) log(1-h) - N log h ]            ~ chi2(1)     (1)
    LR_ind = -2 [ log L(h_1) - log L(h_01, h_11) ]                                  ~ chi2(1)     (2)
    LR_cc  = LR_uc + LR_ind                                                         ~ chi2(2)     (3)

n_ij counts months in state j after state i, h_ij = n_ij / (n_i0 + n_i1), h_1 the share of hits after the
first month. p-values are of the statistic's own law under independent hits, by simulation (Dufour 2006):
chi2 is far off where a dozen hits or fewer are expected, as they always are here. Several sequences
(macro paths, rolling origins) are pooled by adding their counts. Where sequences share a month's shock
(sub-pools of one pool) they are no independent evidence: `are_joint` then takes every law from the forecast's
own joint draws, months independent, and shuffles whole months.

P. H. Kupiec, Techniques for verifying the accuracy of risk measurement models, Journal of Derivatives 3
(1995); P. F. Christoffersen, Evaluating interval forecasts, International Economic Review 39 (1998).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
from scipy import stats

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.rng import stream

SIGNIFICANCE: Final = 0.05  # a test fails below it
N_SIMULATED: Final = 1999  # sequences of the law of a statistic; p-values are multiples of 1 / 2000
COLUMNS: Final = {
    "test": pl.String,
    "level": pl.Float64,  # of the VaR; null for the whole law
    "n": pl.Int64,  # forecasts
    "hits": pl.Int64,  # forecasts that were exceeded; null for the whole law
    "expected": pl.Float64,
    "statistic": pl.Float64,
    "p_value": pl.Float64,
    "passed": pl.Boolean,
}


def transform(realised_N: np.ndarray, draws_NS: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,) where each realised value lies in its predicted law, 0..1: uniform where the law is right.

    u = P(X < x) + V P(X = x) with V uniform: counts and losses of a small pool have atoms, and
    without V a right law would look wrong (Czado, Gneiting and Held, Biometrics 65, 2009). One draw is added
    as ballast, so that u stays inside (0, 1).

    Args:
        realised_N: (N,) what happened. draws_NS: (N, S) draws from each predicted law.

    Raises:
        DataError: shapes do not fit, or values are not finite.
    """
    realised, draws = np.asarray(realised_N, dtype=float), np.asarray(draws_NS, dtype=float)
    if draws.ndim != 2 or realised.shape != draws.shape[:1] or not realised.size:
        raise DataError("one row of draws per forecast", expected=realised.shape, got=draws.shape)
    if not (np.isfinite(realised).all() and np.isfinite(draws).all()):
        raise DataError("forecasts must be finite", expected="finite numbers", got="nan or inf")
    below = (draws < realised[:, None]).sum(axis=1)
    equal = (draws == realised[:, None]).sum(axis=1)
    chance = stream(seed, "backtest", "ties").random(realised.size)
    return (below + chance * (equal + 1)) / (draws.shape[1] + 1)


def exceptions(realised_N: np.ndarray, draws_NS: np.ndarray, level: float, seed: int = 0) -> np.ndarray:
    """(N,) bool: realised values above the predicted `level`-quantile, ties broken at random.

    Raises:
        DataError: see `transform`; or the level is not between 0 and 1.
    """
    return transform(realised_N, draws_NS, seed) > _checked(level)


def kupiec(hits_N: np.ndarray, level: float, seed: int = 0) -> tuple[float, float]:
    """(LR_uc, p-value): is the share of exceptions 1 - level? Eq. (1); exact binomial law."""
    hits, p = np.asarray(hits_N, dtype=bool), 1.0 - _checked(level)
    n, count = hits.size, int(hits.sum())
    every = _coverage_ratio(np.arange(n + 1), n, p)
    mass = stats.binom.pmf(np.arange(n + 1), n, p)
    statistic = float(every[count])
    return statistic, float(min(mass[every >= statistic - 1e-9].sum(), 1.0))


def independence(hits_RT: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """(LR_ind, p-value): does an exception make the next one likelier? Eq. (2).

    Args:
        hits_RT: (R, T) exceptions of R sequences, or (T,) of one. The p-value keeps the number of hits of
            each sequence and shuffles their order, so it does not hang on the level.
    """
    hits = np.atleast_2d(np.asarray(hits_RT, dtype=bool))
    statistic = float(_independence_ratio(_pairs(hits)))
    random = stream(seed, "backtest", "order")
    drawn = np.empty(N_SIMULATED)
    for k in range(N_SIMULATED):
        drawn[k] = _independence_ratio(_pairs(random.permuted(hits, axis=1)))
    return statistic, _tail_share(drawn, statistic)


def conditional_coverage(hits_RT: np.ndarray, level: float, seed: int = 0) -> tuple[float, float]:
    """(LR_cc, p-value): right share and independence together. Eq. (3)."""
    hits = np.atleast_2d(np.asarray(hits_RT, dtype=bool))
    p = 1.0 - _checked(level)
    statistic = float(_coverage_ratio(hits.sum(), hits.size, p) + _independence_ratio(_pairs(hits)))
    random = stream(seed, "backtest", "coverage")
    drawn = np.empty(N_SIMULATED)
    for k in range(N_SIMULATED):
        made = random.random(hits.shape) < p
        drawn[k] = _coverage_ratio(made.sum(), made.size, p) + _independence_ratio(_pairs(made))
    return statistic, _tail_share(drawn, statistic)


def backtest(
    realised_RT: np.ndarray,
    draws_RTS: np.ndarray,
    levels: tuple[float, ...] = (0.95, 0.99),
    seed: int = 0,
    *,
    are_joint: bool = False,
) -> pl.DataFrame:
    """All tests of R sequences of T forecasts.

    Args:
        realised_RT: (R, T) what happened. draws_RTS: (R, T, S) draws from each predicted law.
        are_joint: draw s of a month is one state of the world for all sequences, so that what they share in
            the forecast they share under the null; False takes the sequences as independent.

    Returns:
        Columns of `COLUMNS`: per level 'Kupiec', and with T of 2 or more 'Christoffersen independence' and
        'Christoffersen conditional coverage'; once 'uniform transform' (Kolmogorov-Smirnov).

    Raises:
        DataError: see `transform`.
    """
    realised = np.atleast_2d(np.asarray(realised_RT, dtype=float))
    draws = np.asarray(draws_RTS, dtype=float).reshape(*realised.shape, -1)
    where = transform(realised.ravel(), draws.reshape(realised.size, -1), seed).reshape(realised.shape)
    null = _joint_places(draws, seed) if are_joint else None
    rows: list[tuple[Any, ...]] = []
    for level in levels:
        hits = where > _checked(level)
        drawn = None if null is None else null > level
        for test, (statistic, p_value) in _tests(hits, level, seed, drawn).items():
            expected = hits.size * (1 - level)
            rows.append((test, level, hits.size, int(hits.sum()), expected, statistic, p_value))
    distance, p_value = _uniform(where, null)
    rows.append(("uniform transform", None, where.size, None, None, distance, p_value))
    table = [(*row, row[-1] >= SIGNIFICANCE) for row in rows]
    return pl.DataFrame(table, schema=COLUMNS, orient="row")


def holm(p_values_N: np.ndarray) -> np.ndarray:
    """(N,) p-values adjusted for being N of them (Holm 1979); the smallest becomes N times as large."""
    p = np.asarray(p_values_N, dtype=float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


def _tests(
    hits_RT: np.ndarray, level: float, seed: int, drawn_BRT: np.ndarray | None
) -> dict[str, tuple[float, float]]:
    """Statistic and p-value by test, under independent hits or under the joint ones drawn."""
    is_ordered = hits_RT.shape[1] > 1
    if drawn_BRT is None:
        found = {"Kupiec": kupiec(hits_RT, level)}
        if is_ordered:
            found["Christoffersen independence"] = independence(hits_RT, seed)
            found["Christoffersen conditional coverage"] = conditional_coverage(hits_RT, level, seed)
        return found
    p = 1.0 - level
    covered = _coverage_ratio(drawn_BRT.sum(axis=(1, 2)), hits_RT.size, p)
    statistic = float(_coverage_ratio(hits_RT.sum(), hits_RT.size, p))
    found = {"Kupiec": (statistic, _tail_share(covered, statistic))}
    if is_ordered:
        ordered = _independence_ratio(_pairs(hits_RT))
        random = stream(seed, "backtest", "months")
        shuffled = [random.permutation(hits_RT, axis=1) for _ in range(N_SIMULATED)]
        alone = np.array([_independence_ratio(_pairs(hits)) for hits in shuffled])
        both = covered + np.array([_independence_ratio(_pairs(hits)) for hits in drawn_BRT])
        found["Christoffersen independence"] = float(ordered), _tail_share(alone, float(ordered))
        total = statistic + float(ordered)
        found["Christoffersen conditional coverage"] = total, _tail_share(both, total)
    return found


def _joint_places(draws_RTS: np.ndarray, seed: int) -> np.ndarray:
    """(B,R,T) transforms of worlds drawn from the forecast itself: one draw a month for all sequences."""
    random = stream(seed, "backtest", "joint")
    ordered = np.sort(draws_RTS, axis=-1)
    n_sequences, n_months, n_draws = draws_RTS.shape
    chosen = random.integers(0, n_draws, (N_SIMULATED, n_months))
    out = np.empty((N_SIMULATED, n_sequences, n_months))
    for row in range(n_sequences):
        for month in range(n_months):
            value, line = draws_RTS[row, month, chosen[:, month]], ordered[row, month]
            below = np.searchsorted(line, value, side="left")
            equal = np.searchsorted(line, value, side="right") - below
            out[:, row, month] = (below + random.random(N_SIMULATED) * equal) / n_draws
    return out


def _uniform(where_RT: np.ndarray, null_BRT: np.ndarray | None) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance from uniform, and its p-value."""
    if null_BRT is None:
        found = stats.kstest(where_RT.ravel(), "uniform")
        return float(found.statistic), float(found.pvalue)
    distance = float(_distance(where_RT.reshape(1, -1))[0])
    return distance, _tail_share(_distance(null_BRT.reshape(len(null_BRT), -1)), distance)


def _distance(u_BN: np.ndarray) -> np.ndarray:
    """(B,) largest gap between the share of values below u and u."""
    ordered, n = np.sort(u_BN, axis=1), u_BN.shape[1]
    above = np.arange(1, n + 1) / n - ordered
    below = ordered - np.arange(n) / n
    return np.maximum(above, below).max(axis=1)


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise DataError("a VaR level is a probability", expected="0 < level < 1", got=level)
    return level


def _coverage_ratio(count: np.ndarray | int, n: int, p: float) -> np.ndarray:
    """Eq. (1) for numbers of hits."""
    hits = np.asarray(count, dtype=float)
    share = hits / n
    return -2 * (
        _times_log(n - hits, 1 - p)
        + _times_log(hits, p)
        - _times_log(n - hits, 1 - share)
        - _times_log(hits, share)
    )


def _independence_ratio(pairs: np.ndarray) -> float:
    """Eq. (2) for counts n_ij (2, 2)."""
    after = pairs.sum(axis=1)
    total, hits = after.sum(), pairs[:, 1].sum()
    if total == 0:
        return 0.0
    pooled = hits / total
    null = _times_log(total - hits, 1 - pooled) + _times_log(hits, pooled)
    share = np.divide(pairs[:, 1], after, out=np.zeros(2), where=after > 0)
    free = (_times_log(pairs[:, 0], 1 - share) + _times_log(pairs[:, 1], share)).sum()
    return float(max(-2 * (null - free), 0.0))


def _pairs(hits_RT: np.ndarray) -> np.ndarray:
    """(2, 2) how often state j follows state i, all sequences added."""
    place = 2 * hits_RT[:, :-1].astype(np.int64) + hits_RT[:, 1:]
    return np.bincount(place.ravel(), minlength=4).reshape(2, 2).astype(float)


def _times_log(weight: np.ndarray | float, value: np.ndarray | float) -> np.ndarray:
    """weight * log(value) with 0 log 0 = 0."""
    weight, value = np.broadcast_arrays(np.asarray(weight, dtype=float), np.asarray(value, dtype=float))
    return weight * np.log(value, out=np.zeros_like(value), where=(weight > 0) & (value > 0))


def _tail_share(drawn: np.ndarray, statistic: float) -> float:
    """Monte Carlo p-value, the observed statistic counted among the draws."""
    return float((1 + (drawn >= statistic - 1e-9).sum()) / (drawn.size + 1))
