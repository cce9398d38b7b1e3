"""The shared loop: it learns, stops, resumes to the same bits, and refuses what is not finite."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import learning_rate, make_optimizer, run_training, shuffled_batches

CONFIG = TrainConfig(epochs=12, batch_size=8, lr=0.05, n_threads=1, patience=100)


class Killed(Exception):
    pass


def _problem(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(40, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)), x, y


def _train(
    config: TrainConfig = CONFIG, kill_after: int | None = None, **options: object
) -> tuple[nn.Module, dict]:
    model, x, y = _problem()

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = 0.01 * torch.randn(len(rows), 1, generator=generator)
        return nn.functional.mse_loss(model(x[rows]) + noise, y[rows])

    def check() -> float:
        return float(nn.functional.mse_loss(model(x), y))

    def maybe_die(record: dict) -> None:
        if record["epoch"] == kill_after:
            raise Killed

    history = run_training(
        model, 40, loss_of, config, name="line", validation_loss=check, on_epoch=maybe_die, **options
    )
    return model, history


def test_the_loss_falls_and_the_history_has_a_number_per_epoch() -> None:
    _, history = _train()
    assert history["val_loss"][-1] < 0.2 * history["val_loss"][0]
    assert len(history["loss"]) == len(history["val_loss"]) == len(history["lr"]) == history["epochs"] == 12


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    state = torch.random.get_rng_state()
    first, again = _train()[0], _train()[0]
    other = _train(TrainConfig(epochs=12, batch_size=8, lr=0.05, n_threads=1, seed=1))[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first[0].weight, other[0].weight)
    torch.random.set_rng_state(state)


def test_training_leaves_the_global_random_state_alone() -> None:
    model, x, y = _problem()
    before = torch.random.get_rng_state()
    run_training(model, 40, lambda r, g: nn.functional.mse_loss(model(x[r]), y[r]), CONFIG, name="line")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("epoch", [1, 5, 11])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, epoch: int) -> None:
    whole, history = _train()
    file = tmp_path / "resume.safetensors"
    with pytest.raises(Killed):
        _train(kill_after=epoch, resume=file)
    resumed, continued = _train(resume=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for key in ("loss", "val_loss", "lr", "best_epoch", "best_val_loss"):
        assert continued[key] == history[key]


def test_a_finished_run_resumed_returns_at_once(tmp_path: Path) -> None:
    file = tmp_path / "resume.safetensors"
    first, history = _train(resume=file)
    epochs_run = []
    model, x, y = _problem()

    def never(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        epochs_run.append(1)
        return nn.functional.mse_loss(model(x[rows]), y[rows])

    again = run_training(model, 40, never, CONFIG, name="line", resume=file)
    assert not epochs_run
    assert again["best_val_loss"] == history["best_val_loss"]
    assert torch.equal(model[0].weight, first[0].weight)


def test_a_foreign_or_torn_resume_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "resume.safetensors"
    _train(resume=file, fingerprint="one")
    with pytest.raises(ModelError, match="another run"):
        _train(resume=file, fingerprint="two")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        _train(resume=file, fingerprint="one")


def test_it_stops_when_validation_does_not_improve_and_keeps_the_best_weights() -> None:
    model, x, y = _problem()
    marks = iter([5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    seen: list[torch.Tensor] = []

    def check() -> float:
        seen.append(model[0].weight.clone())
        return next(marks)

    config = TrainConfig(epochs=50, batch_size=8, patience=3, n_threads=1)
    history = run_training(
        model,
        40,
        lambda r, g: nn.functional.mse_loss(model(x[r]), y[r]),
        config,
        name="line",
        validation_loss=check,
    )
    assert history["epochs"] == 5
    assert history["best_epoch"] == 2
    assert history["stopped_early"]
    assert torch.equal(model[0].weight, seen[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_epoch_and_batch(bad: float) -> None:
    model, x, _ = _problem()
    calls = []

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        return model(x[rows]).mean() * (bad if len(calls) == 7 else 1.0)

    with pytest.raises(ModelError, match="epoch 2, batch 2 of 5"):
        run_training(model, 40, loss_of, CONFIG, name="line")


def test_an_exploding_gradient_is_an_error_not_a_step() -> None:
    model, x, _ = _problem()

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (model(x[rows]) * 0).square().sum().sqrt()  # finite, with gradient 0 * inf

    with pytest.raises(ModelError, match="gradient is not finite"):
        run_training(model, 40, loss_of, CONFIG, name="line")


def test_nothing_to_train_on_is_said() -> None:
    model, _, _ = _problem()
    with pytest.raises(ModelError, match="nothing to train on"):
        run_training(model, 0, lambda r, g: torch.zeros(()), CONFIG, name="line")
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing to train"):
        run_training(model, 5, lambda r, g: torch.zeros(()), CONFIG, name="line")


def test_without_a_terminal_lines_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pc_pipeline.training"):
        _train()
    assert caplog.messages
    assert "line epoch 1/12" in caplog.messages[0]


def test_only_matrices_decay() -> None:
    groups = make_optimizer(_problem()[0], CONFIG).param_groups
    assert [group["weight_decay"] for group in groups] == [CONFIG.weight_decay, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])


def test_the_rate_rises_linearly_then_falls_to_its_floor() -> None:
    config = TrainConfig(lr=1.0, warmup_share=0.1, final_lr_share=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@given(st.integers(1, 200), st.integers(1, 64))
def test_batches_cover_every_row_once_and_none_is_tiny(n_rows: int, batch_size: int) -> None:
    batches = shuffled_batches(n_rows, batch_size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(n_rows))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0.0}, {"clip": float("nan")}, {"warmup_share": 1.5}, {"precision": "float8"}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)
