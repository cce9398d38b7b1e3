"""Members of an ensemble: near the trained pair, repeatable, as far apart as fresh data would put them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import stream
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.loan_residual import LoanResidual, LoanResidualConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.simulation.history import history_along
from pc_pipeline.training.ensemble import (
    EnsembleConfig,
    Part,
    make_part,
    observed_moves,
    refit_ensemble,
    resample,
    softmax,
)
from pc_pipeline.training.trajectory_data import raw_features
from pc_pipeline.training.transitions import fit_additive, transition_data
from pc_pipeline_tests.training.test_joint import models, tables


def compiled() -> LoanResidual:
    """A compiled loan model that has seen the tape's features."""
    loans, panel, macro = tables()
    torch.manual_seed(1)
    found = LoanResidual(LoanResidualConfig(n_months=24)).eval()
    with torch.no_grad():
        found.scale.fit(raw_features(prepare_trajectories(panel, loans, macro)))
        found.wide.weight.normal_(0.0, 0.02)
    return found.requires_grad_(False)


def test_members_differ_a_little_and_the_trained_pair_is_left_alone() -> None:
    loans, panel, macro = tables()
    _, transitions, _ = models()
    residual = compiled()
    start = [p.clone() for model in (transitions, residual) for p in model.parameters()]
    config = EnsembleConfig(members=2)
    first, second = refit_ensemble(transitions, residual, loans, panel, macro, history_along, config)
    now = [p for model in (transitions, residual) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, now, strict=True))
    for member in (first, second):
        away = (member.transitions.base - transitions.base).detach().abs()[:, transitions.allowed]
        assert 0 < float(away.max()) < 3
        assert member.residual is not None
        assert 0 < float((member.residual.wide.bias - residual.wide.bias).abs().max()) < 3
    assert not torch.equal(first.transitions.base, second.transitions.base)


def test_a_member_does_not_depend_on_how_many_there_are() -> None:
    loans, panel, macro = tables()
    _, transitions, _ = models()
    seen: list[tuple[int, int]] = []
    (only,) = refit_ensemble(transitions, None, loans, panel, macro, history_along, EnsembleConfig(members=1))
    first, _ = refit_ensemble(
        transitions,
        None,
        loans,
        panel,
        macro,
        history_along,
        EnsembleConfig(members=2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert torch.equal(only.transitions.base, first.transitions.base)
    assert first.residual is None
    assert seen == [(1, 2), (2, 2)]


def test_units_are_paths_or_the_loans_of_an_only_path() -> None:
    loans, panel, macro = tables()
    _, transitions, _ = models()
    tracks = prepare_trajectories(panel, loans, macro)
    moves = observed_moves(transitions, tracks, macro, history_along)
    assert [len(group) for group in moves.groups] == [4, 4]
    assert np.isfinite(moves.log_rows[np.arange(len(moves.target)), moves.target]).all()
    one = pl.col("macro_path_id") == 0
    known, own = macro.filter(one), panel.filter(one)
    tracks = prepare_trajectories(own, loans, known)
    moves = observed_moves(transitions, tracks, known, history_along)
    n_loans = own.group_by("scenario").agg(pl.col("loan_id").n_unique()).sort("scenario")["loan_id"]
    assert all(n - 5 <= len(g) <= n for n, g in zip(n_loans, moves.groups, strict=True))  # some end at once


def test_a_resample_draws_within_groups() -> None:
    groups = [np.arange(4), np.arange(4, 40)]
    counts = resample(groups, seed=3)
    assert counts[:4].sum() == 4
    assert counts[4:].sum() == 36
    np.testing.assert_array_equal(counts, resample(groups, seed=3))
    assert not np.array_equal(counts, resample(groups, seed=4))


def logit_part(copies: int = 1, n: int = 3000) -> Part:
    """Moves of a known logit, each told `copies` times within its unit."""
    draw = stream(5, "logit")
    x = np.concatenate([np.ones((n, 1)), draw.standard_normal((n, 2))], axis=1)
    truth = x @ np.array([[0.0, -1.0, -2.0], [0.0, 0.5, 0.3], [0.0, -0.2, 0.6]])
    y = (softmax(truth).cumsum(axis=1) < draw.random(n)[:, None]).sum(axis=1)
    twice = np.repeat(np.arange(n), copies)
    return make_part(x[twice], 0 * truth[twice], y[twice], twice, np.full(3, 100.0))


@pytest.mark.parametrize("copies", [1, 4])
def test_the_spread_of_steps_is_that_of_the_fisher_information(copies: int) -> None:
    """Independent units: sd = sqrt diag H^-1. Told four times over H is too sure, steps are not."""
    part = logit_part(copies)
    units = [np.arange(int(part.unit.max()) + 1)]
    steps = np.stack([part.step(resample(units, seed)) for seed in range(150)])
    contrast = (steps[:, :, 1:] - steps[:, :, :1]).std(axis=0)  # against the first move: a logit's own scale
    covariance = np.linalg.inv(part.factor @ part.factor.T).reshape(3, 3, 3, 3)  # move, term, move, term
    variance = np.array(
        [
            [covariance[j, f, j, f] + covariance[0, f, 0, f] - 2 * covariance[j, f, 0, f] for j in (1, 2)]
            for f in range(3)
        ]
    )
    np.testing.assert_allclose(contrast / np.sqrt(variance * copies), 1.0, atol=0.25)  # 150 draws: 0.06 each


def test_what_one_part_has_moved_the_other_does_not_move_again() -> None:
    """A part handed the shift of its own best step has little left to do."""
    part = logit_part()
    weights = resample([np.arange(int(part.unit.max()) + 1)], 1)
    step = part.step(weights)
    left = part.step(weights, shift=part.logits(step))
    assert np.abs(part.logits(left)).mean() < 0.15 * np.abs(part.logits(step)).mean()


def default_share(model: TransitionTransformer, macro: torch.Tensor) -> float:
    """Share of corporate loans in default after the path, all performing at its start."""
    cohort = torch.zeros(1, 12)
    cohort[0, 0] = 1.0
    with torch.no_grad():
        rows = model.rows(cohort, macro[None])[0, 0].double()
    held = torch.zeros(7, dtype=torch.double)
    held[0] = 1.0
    for month in rows:
        stay = torch.cat([torch.zeros(4, dtype=torch.double), held[4:]])
        held = held[:4] @ month + stay
    return float(held[4])


@pytest.mark.slow
def test_members_lie_as_far_apart_as_fits_to_fresh_data() -> None:
    """One sample's members against fits to 16 samples of the same law: cumulative default along a path."""

    def sample(seed: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        generator = MacroScenarioGenerator(24, start_date="2020-01-01", random_seed=seed)
        macro = pl.concat([macro_table(generator, name, 24) for name in ("baseline", "severely_adverse")])
        tape = LoanTapeGenerator(
            n_loans=1200, n_months=24, n_vintages=4, start_date="2020-01-01", random_seed=seed
        )
        book = tape.generate_scenario(macro)
        return book.loans, book.panel, macro

    def fitted(loans: pl.DataFrame, panel: pl.DataFrame, macro: pl.DataFrame) -> TransitionTransformer:
        torch.manual_seed(0)
        model = TransitionTransformer(TransitionConfig(d_model=8, n_heads=1, n_layers=1)).eval()
        data = transition_data(cohort_table(loans), transition_table(panel, loans), macro)
        fit_additive(model, data, steps=60)
        return model.requires_grad_(False)

    path = torch.from_numpy(
        MacroScenarioGenerator(24, random_seed=99).generate_paths("severely_adverse", 1)[0]
    ).float()
    fresh = [np.log(default_share(fitted(*sample(seed)), path)) for seed in range(16)]
    tables_0 = sample(0)
    base = fitted(*tables_0)
    members = refit_ensemble(base, None, *tables_0, history_along, EnsembleConfig(members=24))
    own = [np.log(default_share(member.transitions, path)) for member in members]
    ratio = np.std(own, ddof=1) / np.std(fresh, ddof=1)
    assert 0.55 < ratio < 1.8  # 15 and 23 degrees of freedom: 95 % within 0.6 .. 1.6


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError):
        EnsembleConfig(members=0)
