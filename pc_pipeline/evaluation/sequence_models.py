"""Challengers of the payment cascade on histories: Markov chains of order 1 to 3, logistic, boosted trees.

Here: rows of a history table (one a month, with what was known before it), models fitted to them, log-losses
with standard errors clustered by history. Not here: challengers of the loan models (`challengers`).
"""

from __future__ import annotations

from typing import Final

import lightgbm
import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pc_pipeline.evaluation.metrics import clustered_mean
from pc_pipeline.loans.features import calendar_features
from pc_pipeline.loans.payment_status import DAYS_30, DAYS_90, START
from pc_pipeline.schemas.states import N_STATUSES

LAGS: Final = 6
_FLOOR: Final = 1e-6
MODELS: Final = ("Markov 1", "Markov 2", "Markov 3", "logistic", "LightGBM")


class HistoryRows:
    """N moves of histories.

    Args:
        codes: (H, T) int8, -1 after the end. features: (H, F). months: (H,) month index of column 0, or None.
        judged: (H, T) bool, columns to take; the first column never is.
    """

    def __init__(
        self,
        codes: np.ndarray,
        features: np.ndarray,
        months: np.ndarray | None = None,
        judged: np.ndarray | None = None,
    ) -> None:
        take = codes >= 0
        take[:, 0] = False
        self.history, self.month = np.nonzero(take if judged is None else take & judged)
        self.happened = codes[self.history, self.month].astype(np.int64)
        padded = np.concatenate(
            [np.full((len(codes), LAGS), START, dtype=np.int64), codes.astype(np.int64)], axis=1
        )
        self.lags = np.column_stack(
            [padded[self.history, self.month + LAGS - lag] for lag in range(1, LAGS + 1)]
        )
        self.inputs = self._inputs(codes, features, months)

    def __len__(self) -> int:
        return len(self.happened)

    def _inputs(self, codes: np.ndarray, features: np.ndarray, months: np.ndarray | None) -> np.ndarray:
        miss = (codes >= DAYS_30) & (codes <= DAYS_90)
        before: np.ndarray = np.cumsum(miss, axis=1) - miss
        since = np.full(codes.shape, 99)
        for month in range(1, codes.shape[1]):
            since[:, month] = np.where(miss[:, month - 1], 0, np.minimum(since[:, month - 1] + 1, 99))
        at = (self.history, self.month)
        parts = [
            self.lags,
            before[at][:, None],
            since[at][:, None],
            self.month[:, None],
            features[self.history],
        ]
        if months is not None:
            parts.append(calendar_features(months[self.history] + self.month))
        return np.column_stack(parts).astype(np.float32)

    def one_hot(self) -> np.ndarray:
        """(N, D) inputs of the logistic: lags as indicators, features by late or not, the rest as it is."""
        eye = np.eye(START + 1, dtype=np.float32)
        rest = self.inputs[:, LAGS:]
        late = (self.lags[:, :1] >= DAYS_30).astype(np.float32)
        recent = np.exp(-rest[:, 1:2] / 4.0)
        return np.concatenate([eye[self.lags].reshape(len(self), -1), rest, rest * late, recent], axis=1)


def markov_rows(order: int, training: HistoryRows, judged: HistoryRows) -> np.ndarray:
    """(N, 8) of a chain of this order; each context is shrunk to that of one order less by five moves."""
    rows = np.full((len(judged), N_STATUSES), 1.0 / N_STATUSES)
    for depth in range(order + 1):
        key_in, key = (_context(data.lags, depth) for data in (training, judged))
        counts = np.zeros((int(max(key_in.max(), key.max())) + 1, N_STATUSES))
        np.add.at(counts, (key_in, training.happened), 1.0)
        found = counts[key]
        weight = 5.0 if depth else 1.0
        rows = (found + weight * rows) / (found.sum(axis=1, keepdims=True) + weight)
    return rows


def _context(lags: np.ndarray, depth: int) -> np.ndarray:
    key = np.zeros(len(lags), dtype=np.int64)
    for lag in range(depth):
        key = key * (START + 1) + lags[:, lag]
    return key


def logistic_rows(training: HistoryRows, judged: HistoryRows, most: int = 150_000) -> np.ndarray:
    """(N, 8) of a multinomial logistic on lags, recency, calendar and features."""
    chosen = np.unique(np.linspace(0, len(training) - 1, min(most, len(training))).astype(int))
    scale = StandardScaler().fit(training.one_hot()[chosen])
    model = LogisticRegression(C=0.3, max_iter=200)
    model.fit(scale.transform(training.one_hot()[chosen]), training.happened[chosen])
    return _all_statuses(model.predict_proba(scale.transform(judged.one_hot())), model.classes_, judged)


def boosted_rows(training: HistoryRows, judged: HistoryRows, seed: int = 0) -> np.ndarray:
    """(N, 8) of LightGBM; the number of rounds is chosen on a tenth of the histories."""
    held = np.random.default_rng(seed).random(int(training.history.max()) + 1) < 0.1
    apart = held[training.history]
    classes, target = np.unique(training.happened, return_inverse=True)
    options = {
        "objective": "multiclass",
        "num_class": len(classes),
        "learning_rate": 0.06,
        "num_leaves": 31,
        "min_data_in_leaf": 100,
        "lambda_l2": 5.0,
        "feature_fraction": 0.8,
        "seed": seed,
        "deterministic": True,
        "num_threads": 2,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(training.inputs[~apart], target[~apart], categorical_feature=[0, 1])
    model = lightgbm.train(
        options,
        data,
        num_boost_round=400,
        valid_sets=[lightgbm.Dataset(training.inputs[apart], target[apart], reference=data)],
        callbacks=[lightgbm.early_stopping(20, verbose=False)],
    )
    return _all_statuses(np.asarray(model.predict(judged.inputs)), classes, judged)


def _all_statuses(p: np.ndarray, classes: np.ndarray, judged: HistoryRows) -> np.ndarray:
    out = np.full((len(judged), N_STATUSES), _FLOOR)
    out[:, classes] += p
    return out / out.sum(axis=1, keepdims=True)


def challenger_rows(name: str, training: HistoryRows, judged: HistoryRows, seed: int = 0) -> np.ndarray:
    """(N, 8) of one of `MODELS`."""
    if name.startswith("Markov"):
        return markov_rows(int(name.split()[1]), training, judged)
    return logistic_rows(training, judged) if name == "logistic" else boosted_rows(training, judged, seed)


def log_loss_table(answers: dict[str, np.ndarray], judged: HistoryRows, reference: str) -> pl.DataFrame:
    """Log-loss of each model, nats a month, and its paired difference to the reference, both with errors."""
    losses = {
        name: -np.log(np.maximum(p[np.arange(len(judged)), judged.happened], 1e-9))
        for name, p in answers.items()
    }
    rows = []
    for name, loss in losses.items():
        mean = clustered_mean(loss, judged.history)
        gap = clustered_mean(loss - losses[reference], judged.history)
        rows.append((name, mean.value, mean.se, gap.value, gap.se))
    columns = ["model", "log_loss", "se", f"less_{reference}", "se_of_difference"]
    return pl.DataFrame(rows, schema=columns, orient="row")
