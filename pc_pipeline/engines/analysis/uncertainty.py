"""How sure a figure is: an ensemble of trained models carried through, its spread split by origin.

Here: the split into sampling, parameter and model parts. Not here: training of the members (`training`), the
simulations. docs/methods/analytics.md, section 5.

Members come in families (kinds of model), each of several trainings (other data, other seeds). With y_fj the
estimate of member j of family f and s_fj its standard error,

    sampling  = mean s^2,    parameter = mean_f var_j(y_fj) - sampling,
    model     = var_f(mean_j y_fj) - (sampling + parameter) / members of a family,

none below 0 (a nested analysis of variance; Searle, Casella and
McCulloch 1992, chapter 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.engines.analysis.mix import simulate_mix
from pc_pipeline.engines.analysis.study import Study
from pc_pipeline.engines.results import LOSS_FLOOR, SimulationResults
from pc_pipeline.simulation.estimators import (
    CONFIDENCE,
    Estimate,
    expected_loss,
    loss_probability,
)

COLUMNS = ("of", "measure", "value", "lower", "upper", "sampling", "parameter", "model")


def figures(results: SimulationResults) -> dict[tuple[str, str], Estimate]:
    """(of, measure) -> estimate: the pool's measures, each class's expected loss and loss probability."""
    found = {("pool", name): estimate for name, estimate in results.intervals().items()}
    weights = None if np.ptp(results.weights) == 0 else results.weights
    for tranche in results.tranche_results:
        found[tranche.name, "expected_loss"] = expected_loss(tranche.losses, weights, results.strata_P)
        found[tranche.name, "loss_probability"] = loss_probability(
            tranche.losses, LOSS_FLOOR, weights, results.strata_P
        )
    return found


def carry(
    study: Study, transition_models: Sequence[Any], mix: Mapping[str, float], n_paths: int
) -> dict[str, list[SimulationResults]]:
    """Simulate a mix with every trained transition model, in two families.

    Args:
        transition_models: members of an ensemble (`training.ensemble`), the study's own kept out.

    Returns:
        'loan model': with the compiled loan model; 'cohorts alone': loans move as their cohort.
    """
    found: dict[str, list[SimulationResults]] = {"loan model": [], "cohorts alone": []}
    for model in transition_models:
        member = replace(study, transition_model=model)
        found["loan model"].append(simulate_mix(member, mix, n_paths).results)
        bare = replace(member, compiled=None)
        found["cohorts alone"].append(simulate_mix(bare, mix, n_paths).results)
    return found if study.compiled is not None else {"cohorts alone": found["cohorts alone"]}


def uncertainty(families: Mapping[str, Sequence[SimulationResults]]) -> pl.DataFrame:
    """The spread of every figure over an ensemble.

    Args:
        families: kind of model -> results of its members, on the same pool and deal. One family has no model
            part; families of one member have no parameter part.

    Returns:
        Columns COLUMNS: value is the mean of the families' means; lower and upper the 95 % interval of the
        figure of a member yet to be trained (Student's t, members - 1 degrees of freedom); sampling,
        parameter and model are variances that add up to that of such a member.

    Raises:
        SimulationError: no members, or members that report different figures.
    """
    if not families or not all(families.values()):
        raise SimulationError("an ensemble needs members", expected="one result or more per family")
    found = {name: [figures(one) for one in members] for name, members in families.items()}
    keys = list(next(iter(found.values()))[0])
    if any(list(one) != keys for members in found.values() for one in members):
        raise SimulationError("members report different figures", expected="one pool, one deal")
    n_members = sum(len(members) for members in found.values())
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, max(n_members - 1, 1)))
    rows = []
    for of, measure in keys:
        own = [[one[of, measure] for one in members] for members in found.values()]
        value, parts = _parts(own)
        spread = width * float(np.sqrt(sum(parts)))
        rows.append((of, measure, value, max(value - spread, 0.0), value + spread, *parts))
    return pl.DataFrame(rows, schema=list(COLUMNS), orient="row")


def _parts(own: Sequence[Sequence[Estimate]]) -> tuple[float, tuple[float, float, float]]:
    """(mean of families' means, (sampling, parameter, model) variances)."""
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    errors = [((e.upper - e.lower) / (2 * z)) ** 2 for members in own for e in members]
    sampling = float(np.mean(errors))
    means = np.array([np.mean([e.value for e in members]) for members in own])
    within = [np.var([e.value for e in members], ddof=1) for members in own if len(members) > 1]
    pooled = float(np.mean(within)) if within else 0.0
    parameter = max(pooled - sampling, 0.0)
    model = 0.0
    if len(means) > 1:
        noise = float(np.mean([(sampling + parameter) / len(members) for members in own]))
        model = max(float(np.var(means, ddof=1)) - noise, 0.0)
    return float(means.mean()), (sampling, parameter, model)
