"""Loan models against the known truth: share of the gap closed, rivals, macro sensitivity.

Here: `measure` (rows of the fidelity page) and `score_world`, one seed of it. Not here: scores
(`evaluation.scoring`), training (`engines.stages.learning`).

Gap B runs from the class x maturity table (0) to the exact law (1), on fresh loans of the same world along
fresh macro paths. Late rows are those that begin delinquent; their gap runs between the same two models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.fidelity.table import Request, SizedRecipe, figure, figures
from pc_pipeline.engines.stages.learning import train_loan_trajectory, train_transition_transformer
from pc_pipeline.engines.stages.scoring import fresh_test_set
from pc_pipeline.evaluation.challengers import REFERENCE, MarkovTable, standard_challengers
from pc_pipeline.evaluation.metrics import Estimate, clustered_mean, gap_closed, log_losses
from pc_pipeline.evaluation.rows import scoring_rows
from pc_pipeline.loans.macro_index import macro_index
from pc_pipeline.loans.oracle import oracle_rows
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.loans.truth import KIND_OF_MOVE, LawConfig, kind_strengths
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_NAMES, MACRO_SERIES, STANDARD_SCENARIOS
from pc_pipeline.training.trajectories import move_probabilities

SECTION: Final = "synthetic"
TEST_PATHS: Final = 8  # per scenario
RIVAL_ROWS: Final = 200_000
GOAL: Final = 0.90
WITHIN: Final = 0.10
_STEP_SD: Final = 0.25  # of a series, for the slope of a probability
_OURS: Final = "loan network"
_RIVALS: Final = ("multinomial logistic", "boosted trees")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldScores:
    """One seed.

    Attributes:
        gap: (all rows, late rows) share closed by model name. rival_gain: rival's log-loss less the loan
            network's. sensitivity: series -> learned over true response of the miss probability.
    """

    gap: dict[str, tuple[Estimate, Estimate]]
    rival_gain: dict[str, Estimate]
    sensitivity: dict[str, float]


def measure(request: Request) -> pl.DataFrame:
    """Rows of the section: means over seeds, intervals from seeds and loans."""
    worlds = [score_world(recipe, request.device) for recipe in request.recipes]
    note = f"{request.recipe.name}, {len(worlds)} seed(s)"
    rows = []
    for name in worlds[0].gap:
        for place, label in enumerate(("", ", late rows")):
            value, half = _over_seeds([world.gap[name][place] for world in worlds])
            goal = f">= {GOAL:g}" if name == _OURS else ""
            rows.append(
                figure(
                    SECTION,
                    f"gap closed, {name}{label}",
                    value,
                    low=value - half,
                    high=value + half,
                    goal=goal,
                    passed=value >= GOAL if goal else None,
                    note=note,
                )
            )
    for name in worlds[0].rival_gain:
        value, half = _over_seeds([world.rival_gain[name] for world in worlds])
        rows.append(
            figure(
                SECTION,
                f"log-loss gained on {name}",
                value,
                low=value - half,
                high=value + half,
                goal="> 1 se",
                passed=value > half / 1.96,
                note=note,
            )
        )
    return figures([*rows, *_sensitivity_rows(worlds, note)])


def _sensitivity_rows(worlds: list[WorldScores], note: str) -> list[dict[str, Any]]:
    found = []
    for name in MACRO_NAMES:
        ratios = [world.sensitivity[name] for world in worlds]
        is_goal = name == "unemployment_rate"
        value = float(np.mean(ratios))
        found.append(
            figure(
                SECTION,
                f"dP(miss)/d({name}), learned / true",
                value,
                low=min(ratios),
                high=max(ratios),
                goal="0.9..1.1" if is_goal else "",
                passed=abs(value - 1) <= WITHIN if is_goal else None,
                note=f"{note}; range over seeds",
            )
        )
    return found


def _over_seeds(estimates: list[Estimate]) -> tuple[float, float]:
    """Mean, and half a 95 % interval: loans' error and the spread between seeds together."""
    values = np.array([estimate.value for estimate in estimates])
    within = np.mean([estimate.se**2 for estimate in estimates]) / len(values)
    between = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    return float(values.mean()), 1.96 * float(np.sqrt(within + between))


def score_world(recipe: SizedRecipe, device: str = "cpu") -> WorldScores:
    """Train cohort and loan network on one generated world, and score them on fresh loans and paths of it."""
    tape = recipe.tape.generator()
    macro = _paths(recipe, recipe.tape.n_paths, "learn")
    book = tape.generate_scenario(macro)
    counts = transition_table(book.panel, book.loans)
    cohort = train_transition_transformer(recipe.transition_transformer, counts, book.loans, macro, device)
    loan = train_loan_trajectory(recipe.loan_trajectory, book.panel, book.loans, macro, cohort.models, device)
    networks = cohort.models | loan.models
    test = fresh_test_set(tape, _paths(recipe, TEST_PATHS, "test"), n_loans=min(recipe.tape.n_loans, 3000))
    learned = prepare_trajectories(book.panel, book.loans, macro)
    judged = prepare_trajectories(test.panel, test.loans, test.macro, scaler=learned.scaler)
    rows, training = scoring_rows(judged), scoring_rows(learned)
    oracle = oracle_rows(test.panel, test.loans, test.macro, world_seed=test.world_seed or 0)
    cohort_network = networks["transition_transformer"][0]
    reference = MarkovTable(REFERENCE, by=("asset_class", "is_final"))
    reference.fit(training)
    answers = {
        "cohort network": move_probabilities(None, judged, cohort_network),
        _OURS: move_probabilities(networks["loan_trajectory"][0], judged, cohort_network),
    }
    rivals = [rival for rival in standard_challengers(RIVAL_ROWS) if rival.name in _RIVALS]
    for rival in rivals:
        rival.fit(training)
        answers[rival.name] = rival.probabilities(rows)
    losses = {name: log_losses(p, rows.happened) for name, p in answers.items()}
    base, best = log_losses(reference.probabilities(rows), rows.happened), oracle.log_losses
    late = rows.from_state > 0
    return WorldScores(
        gap={
            name: (
                gap_closed(mine, base, best, rows.cluster),
                gap_closed(mine[late], base[late], best[late], rows.cluster[late]),
            )
            for name, mine in losses.items()
        },
        rival_gain={
            rival.name: clustered_mean(losses[rival.name] - losses[_OURS], rows.cluster) for rival in rivals
        },
        sensitivity=macro_sensitivity(cohort_network),
    )


def _paths(recipe: SizedRecipe, n_paths: int, purpose: str) -> pl.DataFrame:
    generator = MacroScenarioGenerator(
        n_months=recipe.tape.n_months,
        start_date=f"{recipe.tape.start_month}-01",
        random_seed=derive_seed(recipe.seed, "fidelity", purpose) % 2**31,
    )
    return pl.concat([macro_table(generator, name, n_paths) for name in STANDARD_SCENARIOS])


def macro_sensitivity(model: TransitionTransformer) -> dict[str, float]:
    """Series -> learned over true change of the log-odds of a miss when that series alone moves.

    Each series is moved by a quarter of a standard deviation both ways, in every month, from the baseline
    means; classes weigh alike, months 12 to 35. The truth's response is that of its macro index.
    """
    from_means = np.tile([series.mean for series in MACRO_SERIES], (36, 1))
    paths = [from_means]
    for place, series in enumerate(MACRO_SERIES):
        for sign in (1.0, -1.0):
            moved = from_means.copy()
            moved[:, place] += sign * _STEP_SD * series.sd
            paths.append(moved)
    values = np.stack(paths)
    cohorts = torch.zeros(len(ASSET_CLASSES), model.config.n_cohort_features)
    cohorts[:] = torch.nan
    cohorts[:, : len(ASSET_CLASSES)] = torch.eye(len(ASSET_CLASSES))
    rows = model.predict(cohorts, values.astype(np.float32), age0=torch.full((len(ASSET_CLASSES),), 6.0))
    odds = (rows[..., 0, 1] / rows[..., 0, 0]).double().log().numpy()[:, :, 12:]
    index = macro_index(values)[..., KIND_OF_MOVE[0, 1]][:, 12:].transpose(0, 2, 1)
    true = index * kind_strengths(LawConfig())[KIND_OF_MOVE[0, 1]] * np.sqrt(LawConfig().macro_share)
    found = {}
    for place, series in enumerate(MACRO_SERIES):
        up, down = 1 + 2 * place, 2 + 2 * place
        found[series.name] = float((odds[up] - odds[down]).mean() / (true[up] - true[down]).mean())
    return found
