"""Members refitted on resamples: near the trained pair, apart from one another, repeatable."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.training.ensemble import EnsembleConfig, _counts, resample, take_histories, train_ensemble
from pc_pipeline_tests.training.test_joint import models, tables

CONFIG = EnsembleConfig(members=2, epochs=1, transition_epochs=1, lr=1e-4)


def test_members_differ_a_little_and_the_trained_pair_is_left_alone() -> None:
    loans, panel, macro = tables()
    _, transitions, trajectory = models()
    start = [p.clone() for model in (transitions, trajectory) for p in model.parameters()]
    first, second = train_ensemble(transitions, trajectory, loans, panel, macro, CONFIG)
    now = [p for model in (transitions, trajectory) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, now, strict=True))
    for member in (first, second):
        away = (member.transitions.base - transitions.base).detach().abs()[:, transitions.allowed]
        assert 0 < float(away.max()) < 3
        assert not torch.equal(member.trajectory.out.weight, trajectory.out.weight)
        assert member.transition_loss == pytest.approx(second.transition_loss, rel=0.1)
    assert not torch.equal(first.transitions.base, second.transitions.base)


def test_a_member_does_not_depend_on_how_many_there_are() -> None:
    loans, panel, macro = tables()
    _, transitions, trajectory = models()
    alone = EnsembleConfig(members=1, epochs=0, transition_epochs=0)
    pair = EnsembleConfig(members=2, epochs=0, transition_epochs=0)
    (only,) = train_ensemble(transitions, trajectory, loans, panel, macro, alone)
    first, _ = train_ensemble(transitions, trajectory, loans, panel, macro, pair)
    assert torch.equal(only.transitions.base, first.transitions.base)


def test_paths_are_drawn_whole_and_within_their_scenario() -> None:
    keys = pl.DataFrame(
        {
            "scenario": ["a"] * 40 + ["b"] * 20,
            "macro_path_id": [k // 10 for k in range(40)] + [k // 10 for k in range(20)],
            "loan_id": [str(k) for k in range(60)],
        }
    )
    rows = resample(keys, seed=3)
    drawn = keys[rows]
    assert len(rows) == 60
    sizes = drawn.group_by("scenario", "macro_path_id").len().sort("scenario", "macro_path_id")
    assert (sizes["len"] % 10 == 0).all()
    assert drawn.filter(pl.col("scenario") == "a").height == 40
    assert drawn["loan_id"].n_unique() < 60
    assert np.array_equal(rows, resample(keys, seed=3))
    assert not np.array_equal(rows, resample(keys, seed=4))


def test_counts_of_a_resample_count_each_loan_as_often_as_it_was_drawn() -> None:
    loans, panel, macro = tables()
    histories = prepare_trajectories(panel, loans, macro)
    every = np.arange(len(histories))
    whole = transition_table(panel, loans)["n_moves"].sum()
    twice = _counts(panel, loans, histories, np.concatenate([every, every]))
    assert twice["n_moves"].sum() == 2 * whole
    assert _counts(panel, loans, histories, every)["n_moves"].sum() == whole
    some = take_histories(histories, np.array([3, 3, 5]))
    assert some.states.shape[0] == some.keys.height == 3
    assert np.array_equal(some.states[0], histories.states[3])


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError):
        EnsembleConfig(members=0)
