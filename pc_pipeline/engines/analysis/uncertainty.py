"""How sure a figure is: an ensemble of models carried through one set of paths, its spread split by origin.

Here: the members of a store (made once, then kept), their simulation, the split into sampling, parameter and
model parts. Not here: how members are refitted (`training.ensemble`). docs/methods/analytics.md, section 5.

Members come in families (kinds of model), each of the same refits, all simulated along the same macro paths
with the same random numbers of the loans. With y_fj the estimate of member j of family f, C the covariance of
the estimates over resampled paths, its diagonal a and the mean off it b,

    sampling  = a,    parameter = mean_f var_j(y_fj) - (a - b),
    model     = var_f(mean_j y_fj) - interaction / members - (a - b of the families' means)        (1)

none below 0 (two-way analysis of variance; Searle, Casella and McCulloch 1992, chapter 4): what paths and
refits have in common cancels from differences and is not counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.core.rng import stream
from pc_pipeline.core.store import Store
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.analysis.mix import plain_paths
from pc_pipeline.engines.analysis.study import Study
from pc_pipeline.engines.results import LOSS_FLOOR, SimulationResults
from pc_pipeline.models.checkpoint import load_model, read_card, save_model
from pc_pipeline.simulation.estimators import CONFIDENCE, VAR_LEVELS
from pc_pipeline.simulation.history import history_along
from pc_pipeline.training.ensemble import EnsembleConfig, Member, refit_ensemble

COLUMNS = ("of", "measure", "value", "lower", "upper", "sampling", "parameter", "model")
FOLDER = "ensemble"
LEVELS = {name: VAR_LEVELS[name] for name in ("95", "99")}  # further out there are too few plain paths
_REPLICATES = 200
Progress = Callable[[int, int], None]


def store_members(
    study: Study, store: Store, members: int, seed: int, progress: Progress | None = None
) -> list[Member]:
    """Refitted members of a store's models; those kept there by an earlier call are read again.

    Raises:
        ConfigError: fewer than 2 members.
    """
    if members < 2:
        raise ConfigError("one model has no spread", expected="2 members or more", got=members)
    folder = store.model_folder(FOLDER)
    name = {
        "of": {key: study.versions.get(key, "") for key in ("transition_transformer", "loan_residual")},
        "histories": store.scan_table("loan_panel").select(pl.len()).collect().item(),
        "seed": seed,
    }
    kept = [_kept(folder / f"member_{k}", name) for k in range(members)]
    if all(one is not None for one in kept):
        return [one for one in kept if one is not None]
    found = refit_ensemble(
        study.transition_model,
        None if study.compiled is None else study.compiled.model,
        store.read_table("loan_tape"),
        store.read_table("loan_panel"),
        store.read_table("macro_scenarios"),
        history_along,
        EnsembleConfig(members=members, seed=seed),
        progress=progress,
    )
    for k, member in enumerate(found):
        place, card = folder / f"member_{k}", {"member": name, "seeds": {"resample": member.seed}}
        save_model(place / "transition_transformer", member.transitions, card)
        if member.residual is not None:
            save_model(place / "loan_residual", member.residual, card)
    return found


def _kept(folder: Path, name: Mapping[str, object]) -> Member | None:
    """A member of that name, if it was kept there."""
    models = []
    for part in ("transition_transformer", "loan_residual"):
        if not (folder / part).exists() or read_card(folder / part).get("member") != name:
            return None
        models.append(load_model(folder / part))
    (transitions, card), (residual, _) = models
    for model in (transitions, residual):
        model.requires_grad_(False).eval()
    return Member(transitions=transitions, residual=residual, seed=int(card["seeds"]["resample"]))


def carry(
    study: Study,
    members: Sequence[Member],
    mix: Mapping[str, float],
    n_paths: int,
    progress: Progress | None = None,
) -> dict[str, list[SimulationResults]]:
    """Simulate a mix with every member along the same paths, in two families.

    Returns:
        'loan model': loans move by the member's compiled loan model; 'cohorts alone': as their cohort.
    """
    macro, names = plain_paths(study, mix, n_paths)
    families = ["cohorts alone"] if study.compiled is None else ["loan model", "cohorts alone"]
    found: dict[str, list[SimulationResults]] = {name: [] for name in families}
    for done, member in enumerate(members):
        for family in families:
            compiled = None
            if family == "loan model" and study.compiled is not None:
                compiled = replace(study.compiled, model=member.residual or study.compiled.model)
            own = replace(study, transition_model=member.transitions, compiled=compiled)
            results = PortfolioAggregator(study.deal).report(own.simulate(macro), scenario=family)
            found[family].append(replace(results, scenario_P=names))
        if progress is not None:
            progress(done + 1, len(members))
    return found


def uncertainty(families: Mapping[str, Sequence[SimulationResults]], seed: int = 0) -> pl.DataFrame:
    """The spread of every figure over an ensemble.

    Args:
        families: kind of model -> results of its members, on the same pool, deal and plain paths, members in
            the same order. One family has no model part; families of one member have no parameter part.

    Returns:
        Columns COLUMNS: value is the mean of the families' means; lower and upper the 95 % interval of the
        figure of a member yet to be trained (Student's t, members - 1 degrees of freedom); sampling,
        parameter and model are variances that add up to that of such a member.

    Raises:
        SimulationError: no members, families of different size, or members that report different figures.
    """
    sizes = {len(members) for members in families.values()}
    if not families or sizes == {0}:
        raise SimulationError("an ensemble needs members", expected="one result or more per family")
    if len(sizes) > 1:
        raise SimulationError("families differ in size", expected="the same members in each", got=sizes)
    every = [one for members in families.values() for one in members]
    weights_RP = _resampled_paths(every[0], seed)
    keys = _keys(every[0])
    if any(
        _keys(one) != keys or one.portfolio_losses.shape != every[0].portfolio_losses.shape for one in every
    ):
        raise SimulationError("members report different figures", expected="one pool, one deal, same paths")
    found = np.stack([_estimates(one, weights_RP) for one in every])  # (families x members, figures, 1 + R)
    shape = (len(families), len(every) // len(families))
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, max(shape[1] - 1, 1)))
    rows = []
    for k, (of, measure) in enumerate(keys):
        value, parts = _parts(found[:, k, 0].reshape(shape), found[:, k, 1:].reshape(*shape, -1))
        spread = width * float(np.sqrt(sum(parts)))
        rows.append((of, measure, value, max(value - spread, 0.0), min(value + spread, 1.0), *parts))
    return pl.DataFrame(rows, schema=list(COLUMNS), orient="row")


def _keys(results: SimulationResults) -> list[tuple[str, str]]:
    levels = [f"{kind}_{name}" for kind in ("var", "cvar") for name in LEVELS]
    found = [("pool", name) for name in ("expected_loss", *levels)]
    for tranche in results.tranche_results:
        found += [(tranche.name, "expected_loss"), (tranche.name, "loss_probability")]
    return found


def _resampled_paths(results: SimulationResults, seed: int) -> np.ndarray:
    """(1 + R, P) shares of the paths: all alike, then R resamples within scenarios."""
    n = results.portfolio_losses.size
    names = results.scenario_P if results.scenario_P is not None else np.zeros(n)
    draw, counts = stream(seed, "uncertainty", "paths"), np.ones((1 + _REPLICATES, n))
    for name in np.unique(names):
        here = np.flatnonzero(names == name)
        counts[1:, here] = draw.multinomial(here.size, np.full(here.size, 1 / here.size), _REPLICATES)
    return counts / n


def _estimates(results: SimulationResults, weights_RP: np.ndarray) -> np.ndarray:
    """(figures, 1 + R) every figure under every weighting of the paths."""
    losses = results.portfolio_losses
    order = np.argsort(losses, kind="stable")
    mass = np.cumsum(weights_RP[:, order], axis=1)
    found = [weights_RP @ losses]
    values, tails = [], []
    for level in LEVELS.values():
        rank = np.minimum((mass < level - 1e-12).sum(axis=1), losses.size - 1)
        value = losses[order][rank]
        tail = weights_RP * (losses >= value[:, None])
        values.append(value)
        tails.append((tail @ losses) / np.maximum(tail.sum(axis=1), 1e-300))
    found += values + tails
    for tranche in results.tranche_results:
        found += [weights_RP @ tranche.losses, weights_RP @ (tranche.losses > LOSS_FLOOR).astype(float)]
    return np.stack(found)


def _parts(y_FJ: np.ndarray, again_FJR: np.ndarray) -> tuple[float, tuple[float, float, float]]:
    """(mean, (sampling, parameter, model) variances), eq. (1)."""
    n_families, n_members = y_FJ.shape
    sampling = float(again_FJR.var(axis=2, ddof=1).mean())
    parameter, model = 0.0, 0.0
    if n_members > 1:
        noise = float(np.mean([_own_noise(one) for one in again_FJR]))
        parameter = max(float(y_FJ.var(axis=1, ddof=1).mean()) - noise, 0.0)
    if n_families > 1:
        centred = y_FJ - y_FJ.mean(axis=1, keepdims=True) - y_FJ.mean(axis=0) + y_FJ.mean()
        degrees = (n_families - 1) * max(n_members - 1, 1)
        interaction = float((centred**2).sum()) / degrees / n_members
        noise = _own_noise(again_FJR.mean(axis=1))
        model = max(float(y_FJ.mean(axis=1).var(ddof=1)) - max(interaction, noise), 0.0)
    return float(y_FJ.mean()), (sampling, parameter, model)


def _own_noise(again_JR: np.ndarray) -> float:
    """a - b: what the estimates of several models on the same paths do not share."""
    covariance = np.atleast_2d(np.cov(again_JR))
    n = len(covariance)
    diagonal = float(np.trace(covariance))
    return (diagonal - (float(covariance.sum()) - diagonal) / (n - 1)) / n


def written_out(table: pl.DataFrame) -> pl.DataFrame:
    """`uncertainty` for reading: percent, and the standard deviation of each part, percentage points."""
    moves = pl.sum_horizontal("sampling", "parameter", "model") > 1e-16
    return table.filter(moves).select(
        "of",
        "measure",
        *(pl.col(name) * 100 for name in ("value", "lower", "upper")),
        *(pl.col(name).sqrt() * 100 for name in ("sampling", "parameter", "model")),
    )


def findings(table: pl.DataFrame) -> list[tuple[str, str]]:
    """Sentences: the expected loss of pool and classes, its interval, how its variance splits."""
    told = []
    for row in table.filter(pl.col("measure") == "expected_loss").iter_rows(named=True):
        parts = {name: float(row[name]) for name in ("sampling", "parameter", "model")}
        total = sum(parts.values())
        if total <= 1e-16:
            continue
        split = ", ".join(f"{name} {part / total:.0%}" for name, part in parts.items())
        told.append(
            (
                f"{row['of']}: expected loss {row['value']:.2%}",
                f"95% interval {row['lower']:.2%} to {row['upper']:.2%}; its variance: {split}.",
            )
        )
    return told
