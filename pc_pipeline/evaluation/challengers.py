"""What every network must beat: persistence, Markov tables, multinomial logistic regression.

Here: one interface (`Challenger`: fit on rows, probabilities for rows). Not here: the networks, which hand in
probabilities of their own; the scores (`scoring`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import stream
from pc_pipeline.evaluation.boosted import BoostedConfig, BoostedTrees, thinned
from pc_pipeline.evaluation.rows import ScoringRows, class_codes
from pc_pipeline.models.markov import RECENCY_EDGES, MarkovTransitionModel
from pc_pipeline.schemas.states import N_LIVING, N_STATES
from pc_pipeline.schemas.units import ASSET_CLASSES, N_SEGMENT_CODES

_SMALLEST_FLAG_SD: Final = 0.3


class Challenger(Protocol):
    """A model of monthly moves."""

    @property
    def name(self) -> str:
        """As printed in tables."""

    def fit(self, rows: ScoringRows) -> None:
        """Learn from training rows."""

    def probabilities(self, rows: ScoringRows) -> np.ndarray:
        """(N,7) of the state moved to."""


class Persistence:
    """Nothing changes: stays with the training share of months without a change, else anything, evenly."""

    name: Final = "persistence"

    def __init__(self) -> None:
        self.stay = 0.95

    def fit(self, rows: ScoringRows) -> None:
        """Take the share of months in which the state stayed."""
        self.stay = float(np.clip((rows.from_state == rows.happened).mean(), 0.01, 0.99))

    def probabilities(self, rows: ScoringRows) -> np.ndarray:
        """(N,7)."""
        out = np.full((len(rows), N_STATES), (1.0 - self.stay) / (N_STATES - 1))
        out[np.arange(len(rows)), rows.from_state] = self.stay
        return out


class MarkovTable:
    """A Markov table by any of the groups of `models.markov`."""

    def __init__(self, name: str, by: tuple[str, ...] = ()) -> None:
        self.name = name
        self.model = MarkovTransitionModel(N_STATES, by=by)

    def fit(self, rows: ScoringRows) -> None:
        """Count moves."""
        self.model.fit_moves(rows.moves)

    def probabilities(self, rows: ScoringRows) -> np.ndarray:
        """(N,7), with half a move spread over every cell, so that nothing unseen is impossible."""
        p = self.model.rows(rows.moves)
        return (p + 1e-6) / (1.0 + 1e-6 * N_STATES)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogisticConfig:
    """Settings of the multinomial logistic.

    Attributes:
        ridges: penalties per squared coefficient, nats; the one that predicts held-out loans best is taken.
        held_out: share of the loans that chooses it. steps: L-BFGS iterations.
        max_rows: most training rows; moves that change the state are kept, the rest sampled and weighted.
        seed: of that sample.
    """

    ridges: tuple[float, ...] = (30.0, 100.0, 300.0)
    held_out: float = 0.2
    steps: int = 60
    max_rows: int = 200_000
    seed: int = 0


class MultinomialLogistic:
    """One multinomial logit per state moved from, on loan, macro, calendar, age and recency.

    A penalised L-BFGS fit in torch; scikit-learn would add a dependency for this one model.
    """

    name: Final = "multinomial logistic"

    def __init__(self, config: LogisticConfig | None = None) -> None:
        self.config = config or LogisticConfig()
        self._weights: dict[int, np.ndarray] = {}
        self._scale: tuple[np.ndarray, np.ndarray] | None = None
        self._used = np.zeros(0, dtype=bool)

    def fit(self, rows: ScoringRows) -> None:
        """Fit every state moved from that occurs."""
        config, random = self.config, stream(self.config.seed, "multinomial_logistic")
        kept, weight = thinned(rows, config.max_rows, random)
        chosen = rows.take(kept)
        x = design(chosen)
        sd = x.std(axis=0)
        self._used = sd > 1e-6  # a column that never varied in training says nothing
        is_flag = ((x == 0.0) | (x == 1.0)).all(axis=0)
        sd = np.where(is_flag, np.maximum(sd, _SMALLEST_FLAG_SD), sd)  # a rare flag is not a large input
        self._scale = x[:, self._used].mean(axis=0), sd[self._used]
        x = (x[:, self._used] - self._scale[0]) / self._scale[1]
        clusters = np.unique(chosen.cluster)
        held = np.isin(chosen.cluster, clusters[random.random(len(clusters)) < config.held_out])
        self._weights = {
            state: self._fit_state(x[at], chosen.happened[at], weight[at], held[at])
            for state in range(N_LIVING)
            if (at := chosen.from_state == state).any()
        }

    def _fit_state(
        self, x: np.ndarray, happened: np.ndarray, weight: np.ndarray, held: np.ndarray
    ) -> np.ndarray:
        inputs = torch.from_numpy(np.column_stack([np.ones(len(x)), x]).astype(np.float32))
        target, sample = torch.from_numpy(happened).long(), torch.from_numpy(weight).float()
        ridges = sorted(self.config.ridges, reverse=True)
        if len(ridges) > 1 and held.any() and not held.all():
            apart, learn = torch.from_numpy(held), torch.from_numpy(~held)
            parts = inputs[learn], target[learn], sample[learn]
            losses: list[float] = []
            beta = None
            for ridge in ridges:  # each fit starts from the tighter one
                beta = self._solve(*parts, ridge, self.config.steps // 2, beta)
                logits = inputs[apart] @ beta
                nats = torch.nn.functional.cross_entropy(logits, target[apart], reduction="none")
                losses.append(float((nats * sample[apart]).sum()))
            ridges = [ridges[int(np.argmin(losses))]]
        return self._solve(inputs, target, sample, ridges[-1], self.config.steps).numpy().astype(float)

    def _solve(
        self,
        inputs: torch.Tensor,
        target: torch.Tensor,
        sample: torch.Tensor,
        ridge: float,
        steps: int,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        beta = torch.zeros(inputs.shape[1], N_STATES) if start is None else start.clone()
        beta.requires_grad_(True)
        seen = torch.bincount(target, minlength=N_STATES) > 0
        closed = torch.where(seen, 0.0, -12.0)
        if start is not None:
            with torch.no_grad():
                beta[0] -= closed
        optimizer = torch.optim.LBFGS([beta], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            nats = torch.nn.functional.cross_entropy(inputs @ beta + closed, target, reduction="none")
            loss = ((nats * sample).sum() + ridge * (beta[1:] ** 2).sum()) / sample.sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        beta = beta.detach()
        beta[0] += closed
        return beta

    def probabilities(self, rows: ScoringRows) -> np.ndarray:
        """(N,7); evenly over all states where a state was never moved from in training.

        Raises:
            ModelError: not fitted.
        """
        if self._scale is None:
            raise ModelError("fit comes first", expected="fit(rows)", got="an unfitted logistic")
        x = (design(rows)[:, self._used] - self._scale[0]) / self._scale[1]
        out = np.zeros((len(rows), N_STATES))
        for state in np.unique(rows.from_state):
            at = rows.from_state == state
            if state not in self._weights:
                out[at] = 1.0 / N_STATES
                continue
            logits = np.column_stack([np.ones(at.sum()), x[at]]) @ self._weights[state]
            logits -= logits.max(axis=1, keepdims=True)
            p = np.exp(logits)
            out[at] = p / p.sum(axis=1, keepdims=True)
        return out


def design(rows: ScoringRows) -> np.ndarray:
    """(N,F) inputs of the logistic: features, by class, maturity, recency, age, season, macro, history."""
    codes = class_codes(rows)
    one_hot = np.eye(len(ASSET_CLASSES))[codes]
    since = rows.moves["since_miss"].to_numpy()
    recency = np.where(since < 0, len(RECENCY_EDGES), np.searchsorted(RECENCY_EDGES, since, side="right") - 1)
    age = np.maximum(rows.moves["age_months"].to_numpy(), 0)
    final = rows.moves["is_final"].to_numpy().astype(float)
    parts = [
        rows.features,
        rows.past,
        (one_hot[:, :, None] * rows.features[:, None, 11:22]).reshape(len(rows), -1),
        final[:, None],
        final[:, None] * one_hot,
        np.eye(len(RECENCY_EDGES) + 1)[recency],
        np.column_stack([np.log1p(age), age / (age + 12.0)]),
        np.eye(12)[rows.calendar[:, 0]],
        np.eye(7)[rows.calendar[:, 1]],
    ]
    if rows.macro is not None:
        parts.append(rows.macro)
    if rows.segments is not None:
        parts += [_one_hot(rows.segments[:, column]) for column in range(rows.segments.shape[1])]
    if rows.observed is not None:
        parts += [np.nan_to_num(rows.observed), np.isnan(rows.observed[:, :1]).astype(float)]
    return np.column_stack(parts)


def _one_hot(codes: np.ndarray) -> np.ndarray:
    """(N,32) industry or region; unknown is a row of zeros."""
    known = np.isfinite(codes)
    return np.eye(N_SEGMENT_CODES)[np.nan_to_num(codes).astype(int)] * known[:, None]


def standard_challengers(max_rows: int = 0) -> list[Challenger]:
    """Persistence, global Markov, class x maturity Markov, with recency; and the strong ones on request.

    Args:
        max_rows: most training rows of the logistic and the boosted trees; 0 leaves both out.
    """
    found: list[Challenger] = [
        Persistence(),
        MarkovTable("global Markov"),
        MarkovTable(REFERENCE, by=("asset_class", "is_final")),
        MarkovTable("class x maturity x recency Markov", by=("asset_class", "is_final", "since_miss")),
    ]
    if max_rows == 0:
        return found
    strong: list[Challenger] = [
        MultinomialLogistic(LogisticConfig(max_rows=max_rows)),
        BoostedTrees(BoostedConfig(max_rows=max_rows)),
    ]
    return [*found, *strong]


REFERENCE: Final = "class x maturity Markov"  # the table every model must clearly beat
