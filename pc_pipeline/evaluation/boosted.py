"""Gradient-boosted trees (LightGBM) as a challenger: the same inputs as the logistic, unexpanded.

Here: `BoostedTrees`, fit on rows and probabilities for rows. Not here: the interface and the other
challengers (`challengers`), scores (`scoring`).

The trees start from the log of the class x maturity table, so an untrained booster is that table, and they
stop by the loss of held-out loans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np

from pc_pipeline.core.errors import ModelError
from pc_pipeline.core.rng import stream
from pc_pipeline.evaluation.rows import ScoringRows, class_codes
from pc_pipeline.models.markov import MarkovTransitionModel
from pc_pipeline.schemas.states import N_STATES

_FLOOR: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class BoostedConfig:
    """Settings of the trees.

    Attributes:
        rounds: most boosting rounds. learning_rate: of each. leaves: per tree. min_rows: per leaf.
        feature_share, row_share: drawn per tree. l2: penalty of leaf values.
        held_out: share of the loans that decides when to stop. patience: rounds without a gain.
        max_rows: most training rows; moves that change the state are kept, the rest sampled and weighted.
        n_threads, seed: of the fit.
    """

    rounds: int = 400
    learning_rate: float = 0.05
    leaves: int = 15
    min_rows: int = 60
    feature_share: float = 0.6
    row_share: float = 0.8
    l2: float = 10.0
    held_out: float = 0.15
    patience: int = 25
    max_rows: int = 200_000
    n_threads: int = 1
    seed: int = 0


class BoostedTrees:
    """Multiclass boosting on a log prior."""

    name: Final = "boosted trees"

    def __init__(self, config: BoostedConfig | None = None) -> None:
        self.config = config or BoostedConfig()
        self._prior = MarkovTransitionModel(N_STATES, by=("asset_class", "is_final"))
        self._booster: Any = None

    def fit(self, rows: ScoringRows) -> None:
        """Fit the table, then trees on it until held-out loans gain nothing."""
        config, random = self.config, stream(self.config.seed, "boosted_trees")
        self._prior.fit_moves(rows.moves)
        kept, weight = thinned(rows, config.max_rows, random)
        chosen = rows.take(kept)
        clusters = np.unique(chosen.cluster)
        held = np.isin(chosen.cluster, clusters[random.random(len(clusters)) < config.held_out])
        if not held.any() or held.all():
            held = np.arange(len(chosen)) % 5 == 4
        parts = [
            lightgbm.Dataset(
                tree_inputs(chosen)[at],
                label=chosen.happened[at],
                weight=weight[at],
                init_score=self._log_prior(chosen)[at],
                params={"max_bin": 127, "verbosity": -1, "feature_pre_filter": False},
            )
            for at in (~held, held)
        ]
        self._booster = lightgbm.train(
            self._parameters(),
            parts[0],
            num_boost_round=config.rounds,
            valid_sets=[parts[1]],
            callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
        )

    def _parameters(self) -> dict[str, Any]:
        config = self.config
        return {
            "objective": "multiclass",
            "num_class": N_STATES,
            "metric": "multi_logloss",
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_rows,
            "feature_fraction": config.feature_share,
            "bagging_fraction": config.row_share,
            "bagging_freq": 1,
            "lambda_l2": config.l2,
            "max_bin": 127,
            "num_threads": config.n_threads,
            "seed": config.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _log_prior(self, rows: ScoringRows) -> np.ndarray:
        return np.log(np.maximum(self._prior.rows(rows.moves), _FLOOR))

    def probabilities(self, rows: ScoringRows) -> np.ndarray:
        """(N,7).

        Raises:
            ModelError: not fitted.
        """
        if self._booster is None:
            raise ModelError("fit comes first", expected="fit(rows)", got="unfitted trees")
        raw = self._booster.predict(tree_inputs(rows), raw_score=True, num_threads=self.config.n_threads)
        logits = raw + self._log_prior(rows)
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        return p / p.sum(axis=1, keepdims=True)


def thinned(rows: ScoringRows, max_rows: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mask of rows kept and (kept,) weights: every change of state, a sample of the others."""
    quiet = rows.from_state == rows.happened
    n_quiet = int(quiet.sum())
    share = min(1.0, max(max_rows - (len(rows) - n_quiet), 1) / max(n_quiet, 1))
    kept = ~quiet | (random.random(len(rows)) < share)
    return kept, np.where(quiet[kept], 1.0 / share, 1.0)


def tree_inputs(rows: ScoringRows) -> np.ndarray:
    """(N,F) float32: the logistic's inputs without its expansions; NaN where missing."""
    parts = [
        rows.from_state[:, None],
        class_codes(rows)[:, None],
        rows.features,
        rows.moves.select("since_miss", "age_months", "is_final").to_numpy(),
        rows.past,
        rows.calendar,
    ]
    parts += [part for part in (rows.macro, rows.segments, rows.observed) if part is not None]
    return np.column_stack(parts).astype(np.float32)
