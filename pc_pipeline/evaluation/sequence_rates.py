"""Rates of payment histories and their differences: the arithmetic under `sequences`.

Here: a family of rates is, for every history, K numerators and K denominators; rate = sum of one over sum of
the other. Real against synthetic gives K differences with standard errors clustered by history (it is one
observation, its months are not). Not here: which families, and their pass marks (`sequences`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pc_pipeline.loans.payment_status import DAYS_30, DAYS_90, DEFAULT, LIVING_STATUSES
from pc_pipeline.schemas.states import N_STATUSES, PAYMENT_STATUSES

AGE_BANDS: Final = ((1, 3), (4, 6), (7, 12), (13, 24), (25, 600))
RUN_LENGTHS: Final = ((1, 1), (2, 2), (3, 3), (4, 6), (7, 12), (13, 600))
LAGS: Final = 6
FEWEST: Final = 5.0  # a cell with a smaller expected count is not judged


@dataclass(frozen=True, slots=True)
class Rates:
    """A family of K rates over N histories: names, numerators (N, K), denominators (N, K)."""

    names: tuple[str, ...]
    top: np.ndarray
    bottom: np.ndarray

    def values(self) -> np.ndarray:
        """(K,) rates; NaN where nothing was counted."""
        bottom = self.bottom.sum(axis=0)
        return np.divide(self.top.sum(axis=0), bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)

    def errors(self) -> np.ndarray:
        """(K,) standard errors of the rates, clustered by history (delta method)."""
        bottom = self.bottom.sum(axis=0)
        residual = self.top - np.nan_to_num(self.values()) * self.bottom
        return np.sqrt((residual**2).sum(axis=0)) / np.maximum(bottom, 1.0)


@dataclass(frozen=True, slots=True)
class Differences:
    """Synthetic less real by cell: names, real rates, differences, their standard errors, whether judged."""

    names: tuple[str, ...]
    real: np.ndarray
    value: np.ndarray
    se: np.ndarray
    judged: np.ndarray


def differences(real: Rates, synthetic: Rates) -> Differences:
    """Differences of two families; a cell is judged where both have histories and counts are not tiny."""
    a, b = real.values(), synthetic.values()
    se = np.sqrt(real.errors() ** 2 + synthetic.errors() ** 2)
    expected = np.minimum(real.bottom.sum(0), synthetic.bottom.sum(0)) * np.fmax(
        np.nan_to_num(a), np.nan_to_num(b)
    )
    judged = np.isfinite(a) & np.isfinite(b) & (expected >= FEWEST) & (se > 0)
    return Differences(real.names, a, np.nan_to_num(b - a), se, judged)


def _is_miss(codes: np.ndarray) -> np.ndarray:
    return (codes >= DAYS_30) & (codes <= DAYS_90)


def _lives(codes: np.ndarray) -> np.ndarray:
    return (codes >= 0) & (codes < DEFAULT)


def transition_rates(codes: np.ndarray) -> Rates:
    """P(next | now) for the 5 x 8 moves from living statuses."""
    n = len(codes)
    top = np.zeros((n, len(LIVING_STATUSES), N_STATUSES))
    rows = np.arange(n)
    for month in range(codes.shape[1] - 1):
        moved = _lives(codes[:, month]) & (codes[:, month + 1] >= 0)
        np.add.at(top, (rows[moved], codes[moved, month], codes[moved, month + 1]), 1.0)
    bottom = np.repeat(top.sum(axis=2, keepdims=True), N_STATUSES, axis=2)
    names = tuple(f"{PAYMENT_STATUSES[i]} -> {name}" for i in LIVING_STATUSES for name in PAYMENT_STATUSES)
    return Rates(names, top.reshape(n, -1), bottom.reshape(n, -1))


def outcome_rates(codes: np.ndarray) -> Rates:
    """Share of histories that end in default, paid off, prepaid; mean length in months."""
    top = np.column_stack([(codes == code).any(axis=1) for code in range(DEFAULT, N_STATUSES)]).astype(float)
    top = np.column_stack([top, (codes >= 0).sum(axis=1)])
    names = (*PAYMENT_STATUSES[DEFAULT:], "length")
    return Rates(names, top, np.ones_like(top))


def memory_rates(codes: np.ndarray) -> Rates:
    """P(miss | on time last month, and k months ago missed / not missed), k = 2..6, and P(miss | now late).

    Only months that follow an up-to-date month, so a first-order chain shows no effect of k at all.
    """
    miss, lives = _is_miss(codes), _lives(codes)
    known = codes >= 0
    tops, bottoms, names = [], [], []
    for lag in range(2, LAGS + 1):
        now, last, then = slice(lag, None), slice(lag - 1, -1), slice(0, codes.shape[1] - lag)
        fresh = known[:, now] & lives[:, last] & ~miss[:, last] & lives[:, then]
        for was_late in (True, False):
            case = fresh & (miss[:, then] == was_late)
            tops.append((case & miss[:, now]).sum(axis=1))
            bottoms.append(case.sum(axis=1))
            names.append(f"P(miss | {'missed' if was_late else 'paid'} {lag} months ago)")
    return Rates(tuple(names), np.column_stack(tops).astype(float), np.column_stack(bottoms).astype(float))


def run_rates(codes: np.ndarray) -> Rates:
    """Shares of completed spells by length: late spells and up-to-date spells."""
    tops, names = [], []
    for label, inside in (("late", _is_miss(codes)), ("up to date", _lives(codes) & ~_is_miss(codes))):
        count = np.zeros((len(codes), len(RUN_LENGTHS)))
        run = np.zeros(len(codes), dtype=int)
        for month in range(codes.shape[1]):
            ended = (run > 0) & ~inside[:, month] & (codes[:, month] >= 0)
            for place, (low, high) in enumerate(RUN_LENGTHS):
                count[:, place] += ended & (run >= low) & (run <= high)
            run = np.where(inside[:, month], run + 1, 0)
        tops.append(count)
        names += [
            f"{label} {low}" + (f"-{high}" if high > low else "") + " months" for low, high in RUN_LENGTHS
        ]
    bottoms = [np.repeat(top.sum(axis=1, keepdims=True), len(RUN_LENGTHS), axis=1) for top in tops]
    return Rates(tuple(names), np.concatenate(tops, axis=1), np.concatenate(bottoms, axis=1))


def cure_and_roll_rates(codes: np.ndarray) -> Rates:
    """By age band: P(up to date next | late now), P(worse next | late now)."""
    now, after = codes[:, :-1], codes[:, 1:]
    late = _is_miss(now) & (after >= 0)
    cured = late & (after < DAYS_30)
    rolled = late & (after > now) & (after <= DEFAULT)
    age = np.arange(1, codes.shape[1])
    tops, bottoms, names = [], [], []
    for low, high in AGE_BANDS:
        band = (age >= low) & (age <= high)
        for label, happened in (("cure", cured), ("roll", rolled)):
            tops.append(happened[:, band].sum(axis=1))
            bottoms.append(late[:, band].sum(axis=1))
            names.append(f"{label}, months {low}-{high}")
    return Rates(tuple(names), np.column_stack(tops).astype(float), np.column_stack(bottoms).astype(float))


def season_rates(codes: np.ndarray, months: np.ndarray) -> Rates:
    """P(miss | up to date last month) by month of the year; months: (N,) month index of column 0."""
    now, after = codes[:, :-1], codes[:, 1:]
    fresh = _lives(now) & ~_is_miss(now) & (after >= 0)
    season = (months[:, None] + np.arange(1, codes.shape[1])) % 12
    tops = np.stack([((season == m) & fresh & _is_miss(after)).sum(axis=1) for m in range(12)], axis=1)
    bottoms = np.stack([((season == m) & fresh).sum(axis=1) for m in range(12)], axis=1)
    return Rates(tuple(f"month {m + 1}" for m in range(12)), tops.astype(float), bottoms.astype(float))


def feature_rates(
    codes: np.ndarray, features: np.ndarray, edges: list[np.ndarray], names: tuple[str, ...]
) -> Rates:
    """Share of histories that ever fall 60 days late or default, by band of each feature."""
    bad = ((codes >= DAYS_30 + 1) & (codes <= DEFAULT)).any(axis=1).astype(float)
    tops, bottoms, labels = [], [], []
    for column, cuts in enumerate(edges):
        band = np.searchsorted(cuts, features[:, column], side="right")
        for place in range(len(cuts) + 1):
            inside = (band == place).astype(float)
            tops.append(bad * inside)
            bottoms.append(inside)
            labels.append(f"{names[column]} band {place + 1}")
    return Rates(tuple(labels), np.column_stack(tops), np.column_stack(bottoms))
