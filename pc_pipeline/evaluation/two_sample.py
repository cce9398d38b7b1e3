"""Classifiers that try to tell generated macro paths from real ones.

Here: `two_sample_auc` (logistic regression on path moments, or a small recurrent network on whole paths),
`auc_with_error`. Not here: the generator of either sample, moments side by side (`macro_fidelity`).

A two-sample test (Lopez-Paz and Oquab 2017): a classifier trained on half of both samples scores the
other half; AUC .5 is 'cannot tell'. AUC errors follow Hanley and McNeil (1982).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.schemas.units import N_MACRO


def two_sample_auc(
    real_PTM: np.ndarray, drawn_PTM: np.ndarray, kind: str = "moments", seed: int = 0, epochs: int = 40
) -> tuple[float, float]:
    """(AUC, standard error) of a classifier on held-out paths.

    Args:
        kind: 'moments' (logistic on path means, sds, ends, lag-1 products and cross products) or
            'sequence' (a small recurrent network on the whole path).

    Raises:
        ModelError: samples that do not fit, or an unknown kind.
    """
    check_samples(real_PTM, drawn_PTM)
    n = min(len(real_PTM), len(drawn_PTM))
    paths = np.concatenate([real_PTM[:n], drawn_PTM[:n]])
    # Month by month, so that the common mean path is no help and no hindrance.
    scaled = (paths - paths.mean(0)) / np.maximum(paths.std(0), 1e-12)
    label = np.repeat([0.0, 1.0], n)
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "two_sample"))).permutation(2 * n)
    train, test = order[:n], order[n:]
    if kind == "moments":
        score = _logistic_scores(_moments(scaled), label, train)
    elif kind == "sequence":
        score = _sequence_scores(scaled, label, train, seed, epochs)
    else:
        raise ModelError("unknown classifier", expected="moments, sequence", got=kind)
    return auc_with_error(label[test], score[test])


def auc_with_error(label: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and its standard error."""
    rank = np.empty(len(score))
    rank[score.argsort(kind="stable")] = np.arange(1, len(score) + 1)
    positive, negative = int(label.sum()), int((1 - label).sum())
    auc = (rank[label == 1].sum() - positive * (positive + 1) / 2) / (positive * negative)
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
    return float(auc), float(math.sqrt(max(variance, 0.0) / (positive * negative)))


def _moments(scaled_PTM: np.ndarray) -> np.ndarray:
    """(P, F) features of each path: level, spread, ends, persistence, shocks and how they go together."""
    change = np.diff(scaled_PTM, axis=1)
    upper = np.triu_indices(N_MACRO)
    months = scaled_PTM.shape[1]
    features = [
        scaled_PTM.mean(1),
        scaled_PTM.std(1),
        scaled_PTM[:, 0],
        scaled_PTM[:, -1],
        scaled_PTM.min(1),
        scaled_PTM.max(1),
        (scaled_PTM[:, 1:] * scaled_PTM[:, :-1]).mean(1),
        np.einsum("ptm,ptn->pmn", change, change)[:, upper[0], upper[1]] / months,
        np.einsum("ptm,ptn->pmn", scaled_PTM, scaled_PTM)[:, upper[0], upper[1]] / months,
    ]
    return np.concatenate(features, axis=1)


def _logistic_scores(features: np.ndarray, label: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Ridge logistic regression by Newton's method, fitted on `train`."""
    x = (features - features[train].mean(0)) / np.maximum(features[train].std(0), 1e-9)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weight, penalty = np.zeros(x.shape[1]), 10.0 * np.eye(x.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(x[train] @ weight, -30, 30)))
        slope = x[train].T @ (label[train] - chance) - penalty @ weight
        curve = (x[train] * (chance * (1 - chance))[:, None]).T @ x[train] + penalty
        step = np.linalg.solve(curve, slope)
        weight = weight + step
        if np.abs(step).max() < 1e-6:
            break
    return x @ weight


def _sequence_scores(
    scaled: np.ndarray, label: np.ndarray, train: np.ndarray, seed: int, epochs: int
) -> np.ndarray:
    """A recurrent classifier; the last fifth of `train` picks the epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "two_sample", "network"))
        net = nn.GRU(2 * N_MACRO, 32, batch_first=True)
        head = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1))
        x = torch.tensor(scaled, dtype=torch.float32)
        x = torch.cat([x, torch.diff(x, dim=1, prepend=x[:, :1])], dim=-1)
        y = torch.tensor(label, dtype=torch.float32)
        optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=3e-3, weight_decay=1e-2)
        cut = max(1, len(train) * 4 // 5)
        fit, check = torch.from_numpy(train[:cut]), torch.from_numpy(train[cut:])

        def logits(rows: torch.Tensor) -> torch.Tensor:
            states, _ = net(x[rows])
            return head(torch.cat([states.mean(1), states[:, -1]], dim=-1))[:, 0]

        best, scores = math.inf, torch.zeros(len(x))
        for _ in range(epochs):
            for rows in fit[torch.randperm(len(fit))].split(128):
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits(rows), y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                loss = float(nn.functional.binary_cross_entropy_with_logits(logits(check), y[check]))
                if loss < best:
                    best = loss
                    scores = torch.cat([logits(rows) for rows in torch.arange(len(x)).split(2048)])
    return scores.double().numpy()


def check_samples(real_PTM: np.ndarray, drawn_PTM: np.ndarray) -> None:
    """Raise ModelError where the samples cannot be compared."""
    fits = real_PTM.ndim == drawn_PTM.ndim == 3 and real_PTM.shape[1:] == drawn_PTM.shape[1:]
    if not fits or real_PTM.shape[2] != N_MACRO or min(len(real_PTM), len(drawn_PTM)) < 20:
        raise ModelError(
            "samples cannot be compared",
            expected=f"two arrays (20 or more paths, months, {N_MACRO}) of the same months",
            got=(real_PTM.shape, drawn_PTM.shape),
        )
