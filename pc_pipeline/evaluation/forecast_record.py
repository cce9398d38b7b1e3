"""What a model's earlier forecasts say of its next ones: whose level to trust, how far months stray together.

Here: pure functions of a record of monthly counts, expected and happened. Not here: who forecasts
(`engines.fidelity.auto_record`), the tests (`backtests`).

Loans of one month share what no loan feature says (how a month ends, a holiday, a servicer's posting), so
counts spread wider than independent loans would. With p the chances of a month and e its common shock in
log-odds,

    logit p' = logit p + e - c,    e ~ sd t_n,    c = log mean exp(e)                              (1)

sd is the likeliest one for the n months of the record, counts being Poisson given e and e normal; t_n instead
of a normal because sd is known from n months only; c keeps expected counts. The record is always earlier than
what it is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special, stats

from pc_pipeline.core.errors import DataError

_SDS: Final = np.linspace(0.0, 1.5, 151)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
_SHIFT_STEPS: Final = 40
_FAR: Final = 12.0  # log-odds; a level further off is not looked for
_FARTHEST: Final = 3.0  # log-odds a month may stray: twentyfold
_TINY: Final = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonShock:
    """How far all loans of a month stray together.

    Attributes:
        sd: in log-odds; 0 where the record asks for none. n_months: of the record.
    """

    sd: float
    n_months: int

    def draw(self, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        """Shocks e - c of Eq. (1), draws along the last axis."""
        shocks = np.clip(
            self.sd * random.standard_t(max(self.n_months, 1), size=shape), -_FARTHEST, _FARTHEST
        )
        return shocks - np.log(np.exp(shocks).mean(axis=-1, keepdims=True))


def common_shock(expected_M: np.ndarray, happened_M: np.ndarray) -> CommonShock:
    """The likeliest `CommonShock` of a record of M months.

    Args:
        expected_M: (M,) expected counts, positive. happened_M: (M,) counts.

    Raises:
        DataError: shapes differ, there is no month, or something was not expected at all.
    """
    expected, happened = _checked(expected_M, happened_M)
    logs = [_log_likelihood(expected, happened, float(sd)) for sd in _SDS]
    return CommonShock(sd=float(_SDS[int(np.argmax(logs))]), n_months=len(expected))


def better_level(expected: Mapping[str, np.ndarray], happened_M: np.ndarray) -> str:
    """The name whose expected counts came nearest to what happened, in all months together.

    Raises:
        DataError: nothing to choose from; see `common_shock`.
    """
    if not expected:
        raise DataError("nothing to choose from", expected="at least one forecast", got=0)
    gaps = {}
    for name, expected_M in expected.items():
        forecast, happened = _checked(expected_M, happened_M)
        gaps[name] = abs(np.log((happened.sum() + 0.5) / (forecast.sum() + 0.5)))
    return min(gaps, key=lambda name: gaps[name])


def at_level(chance_N: np.ndarray, wanted_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """(N,) chances moved by one log-odds per group, so that each group expects what `wanted_N` does.

    Args:
        chance_N: whose order among loans is kept. wanted_N: whose sums are taken.
        group_N: (N,) label, e.g. month and state moved from.
    """
    logit = special.logit(np.clip(chance_N, _TINY, 1 - _TINY))
    _, place = np.unique(group_N, return_inverse=True)
    n_groups = int(place.max()) + 1
    wanted = np.bincount(place, weights=np.clip(wanted_N, _TINY, 1 - _TINY), minlength=n_groups)
    low, high = np.full(n_groups, -_FAR), np.full(n_groups, _FAR)
    for _ in range(_SHIFT_STEPS):  # bisection: sums rise with the shift
        middle = (low + high) / 2
        is_low = np.bincount(place, weights=special.expit(logit + middle[place]), minlength=n_groups) < wanted
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return special.expit(logit + ((low + high) / 2)[place])


def _log_likelihood(expected: np.ndarray, happened: np.ndarray, sd: float) -> float:
    rates = expected[:, None] * np.exp(sd * _NODES[None] - sd**2 / 2)
    logs = stats.poisson.logpmf(happened[:, None], rates) + np.log(_WEIGHTS / _WEIGHTS.sum())
    return float(special.logsumexp(logs, axis=1).sum())


def _checked(expected_M: np.ndarray, happened_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    expected, happened = np.asarray(expected_M, dtype=float), np.asarray(happened_M, dtype=float)
    if expected.shape != happened.shape or expected.ndim != 1 or not expected.size or expected.min() <= 0:
        raise DataError(
            "a record is one expected and one observed count a month",
            expected="equal lengths, at least one month, expected above 0",
            got=(expected.shape, happened.shape),
        )
    return expected, np.round(happened)
