"""The loan trainer on the real generator: it beats its cohort, and padding teaches nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.trajectories import (
    TrajectoryTrainer,
    batch_losses,
    class_rows,
    evaluate,
    length_batches,
    model_features,
    move_probabilities,
    outputs,
    raw_features,
    trajectory_data,
)

ONE_THREAD = TrainConfig(n_threads=1)
SIZE = TrajectoryConfig(d_model=8, n_heads=2, n_layers=1, dropout=0.0, diffusion_steps=20, idio_scale=1.0)


@pytest.fixture(scope="module")
def book() -> tuple[pl.DataFrame, pl.DataFrame, Trajectories, pl.DataFrame]:
    macro = macro_table(MacroScenarioGenerator(n_months=36, random_seed=1), "adverse", 4)
    generator = LoanTapeGenerator(n_loans=800, n_months=36, random_seed=1)
    book = generator.generate_scenario(macro)
    return book.loans, book.panel, prepare_trajectories(book.panel, book.loans, macro), macro


def test_seed_call_beats_the_cohort_on_loans_it_never_saw(book) -> None:
    loans, _, trajectories, _ = book
    torch.manual_seed(0)
    model = LoanTrajectoryModel(SIZE)
    history = TrajectoryTrainer(model, lr=2e-3, config=TrainConfig(patience=9, n_threads=1)).fit(
        loan_features=loans, trajectories=trajectories, epochs=6, batch_size=64
    )
    assert history["val_state_loss"] < history["cohort_state_loss"] - 0.0003
    assert not history["has_cohort_rows"]
    assert min(history["val_loss"]) < history["val_loss"][0]


def test_an_untrained_model_scores_as_its_cohort(book) -> None:
    _, _, trajectories, _ = book
    data = trajectory_data(trajectories, class_rows(trajectories))
    model, every = LoanTrajectoryModel(SIZE), torch.arange(len(data))
    assert evaluate(model, data, every)[0] == pytest.approx(
        evaluate(model, data, every, residual=False)[0], abs=1e-6
    )


def test_cohort_rows_come_from_the_transition_model_month_by_month(book) -> None:
    _, _, trajectories, macro = book
    torch.manual_seed(0)
    transition = TransitionTransformer(TransitionConfig(d_model=8, n_heads=2, n_layers=1))
    torch.nn.init.normal_(transition.macro_effect, 0, 0.1)
    history = TrajectoryTrainer(LoanTrajectoryModel(SIZE), lr=1e-3, config=ONE_THREAD).fit(
        trajectories=trajectories, epochs=1, transition_model=transition, macro_data=macro, max_loans=100
    )
    assert history["has_cohort_rows"]


def test_padding_is_never_trained_on(book) -> None:
    """Whatever stands after the end of a history changes neither loss nor gradient."""
    _, _, trajectories, _ = book
    data = trajectory_data(trajectories, class_rows(trajectories))
    garbled = dataclasses.replace(
        data,
        values=torch.where((data.states < 0)[..., None], torch.full_like(data.values, 9.0), data.values),
        is_final=torch.where(data.states < 0, ~data.is_final, data.is_final),
    )
    model, every = LoanTrajectoryModel(SIZE), torch.arange(200)
    assert evaluate(model, data, every) == evaluate(model, garbled, every)


def test_raw_features_undo_the_scaling_and_keep_what_is_missing(book) -> None:
    loans, _, trajectories, _ = book
    raw = raw_features(trajectories)
    row = int(trajectories.loan_row[0])
    assert float(raw[0, 14]) == pytest.approx(loans["interest_rate"][row], abs=1e-5)
    assert bool(torch.isnan(raw).any())
    model = LoanTrajectoryModel(SIZE)
    model.fit_scaling(raw, trajectories.scaler.reference_month)
    again = model_features(model, loans)[row]
    same = torch.arange(38) != 22  # age differs: the tape is at origination
    assert torch.allclose(again[same], raw[0][same], atol=1e-3, equal_nan=True)


def test_batches_hold_every_history_once_and_like_lengths_together() -> None:
    lengths = torch.from_numpy(np.random.default_rng(0).integers(1, 61, 1000))
    batches = length_batches(lengths, torch.arange(1000), 128, seed=0)
    assert sorted(torch.cat(batches).tolist()) == list(range(1000))
    assert max(int(lengths[batch].max() - lengths[batch].min()) for batch in batches) < 20


def test_windows_know_what_was_paid_before_and_nothing_of_the_month(book) -> None:
    _, _, trajectories, _ = book
    ratio = np.zeros_like(trajectories.payment_ratio)
    ratio[:, :4] = [1.0, 0.0, 2.0, 1.0]
    states = np.full_like(trajectories.states, -1)
    states[:, :4] = 0
    known = dataclasses.replace(
        trajectories, payment_ratio=ratio, states=states, mask=states >= 0, initial_state=states[:, 0]
    )
    windows = trajectory_data(known, class_rows(known)).take(torch.tensor([0])).windows
    assert windows.shape == (1, 4, 12)
    assert bool(torch.isnan(windows[0, 0]).all())
    assert windows[0, 3, -3:].tolist() == [1.0, 0.0, 2.0]
    assert bool(torch.isnan(windows[0, 3, :-3]).all())


def test_each_member_learns_by_its_own_answers(book) -> None:
    """The training loss is the mean of the members' losses, not the loss of their mean."""
    _, _, trajectories, _ = book
    torch.manual_seed(0)
    model = LoanTrajectoryModel(dataclasses.replace(SIZE, n_members=2)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    batch = trajectory_data(trajectories, class_rows(trajectories)).take(torch.arange(50))
    together, _ = batch_losses(model, batch, torch.Generator().manual_seed(0), is_taught=True)
    observed = batch.states >= 0
    single = [
        torch.nn.functional.cross_entropy(logits[observed], batch.states[observed], reduction="none")
        for logits in outputs(model, batch, apart=True)["state_logits"]
    ]
    assert torch.allclose(together, torch.stack(single).mean(0))
    average, _ = batch_losses(model, batch, torch.Generator().manual_seed(0))
    assert bool(average.detach().mean() < together.detach().mean())  # log-loss is convex in the logits


def test_a_model_that_reads_payments_works_without_them(book) -> None:
    _, _, trajectories, _ = book
    torch.manual_seed(0)
    model = LoanTrajectoryModel(dataclasses.replace(SIZE, reads_payments=True))
    TrajectoryTrainer(model, lr=1e-3, config=ONE_THREAD).fit(
        trajectories=trajectories, epochs=2, batch_size=64
    )
    without = move_probabilities(model, trajectories, with_payments=False)
    assert np.allclose(without.sum(1), 1.0, atol=1e-5)
    assert not np.allclose(without, move_probabilities(model, trajectories), atol=1e-4)


def test_what_does_not_fit_is_refused(book) -> None:
    _, _, trajectories, _ = book
    with pytest.raises(DataError, match="no histories"):
        TrajectoryTrainer(LoanTrajectoryModel(SIZE)).fit()
    jumped = trajectories.states.copy()
    jumped[:, 0] = 4
    broken = dataclasses.replace(trajectories, states=jumped)
    transition = TransitionTransformer(TransitionConfig(d_model=8, n_heads=2, n_layers=1))
    trainer = TrajectoryTrainer(LoanTrajectoryModel(SIZE))
    with pytest.raises(DataError, match="exclude"):
        trainer.fit(trajectories=broken, transition_model=transition)
