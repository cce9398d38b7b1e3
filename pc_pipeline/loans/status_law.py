"""Payment histories whose law is known exactly: what the cascade is measured on.

    P(s -> s') proportional to M[s, s'] exp(w[s, s'] r) x miss odds
    miss odds = season(month) x ratio ** exp(-(months since miss - 1) / decay), from up to date to late

M is the fallback matrix, r a risk index of four borrower features, w is +1 for a worse status, -1/2 for a
better one. A borrower up to date one month after a miss is `ratio` (3) times as likely to miss again, and the
effect fades. So the law is not first-order. Not here: the law of loan panels (`truth`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.periods import month_index, parse_month
from pc_pipeline.core.rng import stream
from pc_pipeline.loans.borrower_features import RISK_GRADES, borrower_features
from pc_pipeline.loans.payment_status import (
    DAYS_30,
    DAYS_90,
    DEFAULT,
    FALLBACK_MATRIX,
    GRACE,
    LIVING_STATUSES,
    ON_TIME,
    matrix_array,
)
from pc_pipeline.schemas.states import N_STATUSES

_RISK_SD: Final = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusLaw:
    """Constants of the law.

    Attributes:
        miss_ratio: odds of a miss one month after a late month over those of one never late.
        decay_months: e-folding time of the log of that ratio.
        december, february, march: log-odds added to a miss.
        risk_strength: log-odds of a miss per standard deviation of the risk index.
    """

    miss_ratio: float = 3.0
    decay_months: float = 4.0
    december: float = 0.30
    february: float = -0.25
    march: float = -0.25
    risk_strength: float = 1.0

    def season(self) -> np.ndarray:
        """(12,) log-odds of a miss by month of the year."""
        out = np.zeros(12)
        out[[11, 1, 2]] = self.december, self.february, self.march
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownHistories:
    """N histories and their truth.

    Attributes:
        codes: (N, T) int8, a terminal status repeated. borrowers: frame of the ten features.
        features: (N, 10) normalised. months: (N,) month index of column 0.
        truth: (N, T, 8) probabilities of each column's status given the history before it; column 0 and
            what follows a terminal status are zero.
    """

    codes: np.ndarray
    borrowers: pl.DataFrame
    features: np.ndarray
    months: np.ndarray
    truth: np.ndarray


def _borrowers(count: int, random: np.random.Generator) -> pl.DataFrame:
    score = np.clip(random.normal(680, 70, count), 320, 845)
    grade = np.clip(np.round((740 - score) / 45 + random.normal(0, 0.7, count)) + 1, 0, 4).astype(int)
    columns: dict[str, Any] = {
        "credit_score": np.round(score),
        "dti": np.clip(random.beta(3, 6, count), 0.01, 0.95),
        "income": np.round(np.exp(random.normal(11.0, 0.5, count))),
        "principal": np.round(np.exp(random.normal(9.6, 0.6, count))),
        "term_months": random.choice([36, 48, 60], count),
        "interest_rate": np.clip(0.04 + 0.03 * grade + random.normal(0, 0.01, count), 0.01, 0.35),
        "risk_grade": np.array(RISK_GRADES)[grade],
        "employment_months": np.round(random.gamma(2.0, 40.0, count)),
        "delinquencies_2y": random.poisson(0.3, count),
        "bankruptcies": (random.random(count) < 0.04).astype(int),
    }
    return pl.DataFrame(columns)


def risk_index(features: np.ndarray) -> np.ndarray:
    """(N,) centred index of normalised features: score, debt to income, grade, delinquencies."""
    raw = -3.0 * (features[:, 0] - 0.69) + 2.0 * (features[:, 1] - 0.33) + 1.0 * (features[:, 6] - 0.45)
    return (raw + 2.0 * features[:, 8] - 0.06) / _RISK_SD


def _directions() -> np.ndarray:
    """(8, 8) +1 where the next status is worse, -1/2 where it is better, 0 otherwise."""
    out = np.zeros((N_STATUSES, N_STATUSES))
    for origin in LIVING_STATUSES:
        for target in range(DEFAULT + 1):
            out[origin, target] = 1.0 if target > origin else -0.5 if target < origin else 0.0
    return out


def known_histories(
    n_borrowers: int,
    n_months: int = 24,
    *,
    law: StatusLaw | None = None,
    seed: int = 0,
    start_date: str = "2021-01-01",
    n_starts: int = 12,
) -> KnownHistories:
    """Histories under the law; loans start in `n_starts` consecutive months, all on time in month 1."""
    law, random = law or StatusLaw(), stream(seed, "status_law")
    borrowers = _borrowers(n_borrowers, random)
    features = borrower_features(borrowers)
    first = month_index(parse_month(start_date)) + random.integers(0, n_starts, n_borrowers)
    risk = np.clip(law.risk_strength * 0.5 * risk_index(features), -2.5, 2.5)
    base, direction, season = matrix_array(FALLBACK_MATRIX), _directions(), law.season()
    codes = np.zeros((n_borrowers, n_months), dtype=np.int8)
    truth = np.zeros((n_borrowers, n_months, N_STATUSES), dtype=np.float32)
    since = np.full(n_borrowers, -1)
    for month in range(1, n_months):
        before = codes[:, month - 1].astype(int)
        late = (before >= DAYS_30) & (before <= DAYS_90)
        since = np.where(late, 0, np.where(since >= 0, since + 1, since))
        odds = base[before] * np.exp(direction[before] * risk[:, None])
        memory = np.where(since >= 1, np.log(law.miss_ratio) * np.exp(-(since - 1) / law.decay_months), 0.0)
        miss = np.exp(season[(first + month) % 12] + memory)
        fresh = (before == ON_TIME) | (before == GRACE)
        odds[:, DAYS_30] *= np.where(fresh, miss, 1.0)
        rows_p = odds / odds.sum(axis=1, keepdims=True)
        cumulative = np.cumsum(rows_p, axis=1)
        drawn = (random.random(n_borrowers)[:, None] >= cumulative).sum(axis=1)
        codes[:, month] = np.minimum(drawn, N_STATUSES - 1)
        truth[:, month] = np.where((before < DEFAULT)[:, None], rows_p, 0.0)
    return KnownHistories(codes=codes, borrowers=borrowers, features=features, months=first, truth=truth)
