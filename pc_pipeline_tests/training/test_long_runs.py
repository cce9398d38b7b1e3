"""Runs that are killed, watched, or spread over processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import run_training
from pc_pipeline.training.watch import keep_training, kept_training
from pc_pipeline_tests.training.train_line import CONFIG, train

SCRIPT = "pc_pipeline_tests.training.train_line"


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_process_killed_by_force_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "resume.safetensors"
    process = subprocess.Popen([sys.executable, "-m", SCRIPT, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "3":
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    told: list[int] = []
    resumed, history = train(resume=file, on_epoch=lambda record: told.append(record["epoch"]))
    whole, expected = train()
    assert told == [4, 5, 6, 7, 8]
    assert same_weights(resumed, whole)
    assert {k: history[k] for k in ("loss", "val_loss", "lr")} == {
        k: expected[k] for k in ("loss", "val_loss", "lr")
    }


class Killed(Exception):
    pass


def test_inside_keep_training_a_killed_run_goes_on_by_itself_and_clears_up(tmp_path: Path) -> None:
    def die(record: dict) -> None:
        if record["epoch"] == 5:
            raise Killed

    with keep_training(tmp_path):
        with pytest.raises(Killed):
            train(on_epoch=die)
        assert len(list(tmp_path.glob("line-*.safetensors"))) == 1
        told: list[int] = []
        resumed, _ = train(on_epoch=lambda record: told.append(record["epoch"]))
    assert kept_training() is None
    assert told == [6, 7, 8]
    assert same_weights(resumed, train()[0])
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_finished_run_can_be_kept_and_then_returns_at_once(tmp_path: Path) -> None:
    told: list[int] = []
    with keep_training(tmp_path, keep_finished=True):
        first, _ = train()
        again, _ = train(on_epoch=lambda record: told.append(record["epoch"]))
    assert told == []
    assert same_weights(first, again)


def test_another_run_does_not_go_on_from_it(tmp_path: Path) -> None:
    with keep_training(tmp_path):
        with pytest.raises(Killed):
            train(on_epoch=lambda record: (_ for _ in ()).throw(Killed()))
        told: list[int] = []
        train(replace(CONFIG, seed=5), on_epoch=lambda record: told.append(record["epoch"]))
    assert told[0] == 1


def test_curves_can_be_looked_at_with_tensorboard(tmp_path: Path) -> None:
    with keep_training(tmp_path):
        train()
    (events,) = (tmp_path / "curves" / "line").iterdir()
    payload = events.read_bytes()
    assert all(name in payload for name in (b"loss", b"val_loss", b"gradient_norm"))


def test_an_exploding_gradient_stops_before_anything_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), torch.ones(10, 3)
    start = [p.clone() for p in model.parameters()]
    file = tmp_path / "resume.safetensors"

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return 1e9 * model(x[rows]).square().mean()

    with pytest.raises(ModelError, match="gradient explodes") as caught:
        run_training(model, 10, loss_of, CONFIG, name="line", resume=file)
    assert "step 1" in str(caught.value)
    assert "weight" in str(caught.value)
    assert not file.exists()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True))
    with pytest.raises(ConfigError, match="explosion"):
        TrainConfig(explosion=1.0)


def test_the_parameter_whose_gradient_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    x = torch.ones(10, 3)

    def loss_of(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        sound = model(x[rows]).square().mean()
        return sound + (model[1].bias * 0).square().sum().sqrt()

    with pytest.raises(ModelError, match=r"1\.bias"):
        run_training(model, 10, loss_of, CONFIG, name="line")


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_doubled_batch(tmp_path: Path) -> None:
    out = tmp_path / "two.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", SCRIPT]
    command = [sys.executable, *torchrun, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    two = json.loads(out.read_text())
    model, history = train(replace(CONFIG, batch_size=20), dropout=0.0)
    assert two["loss"] == pytest.approx(history["loss"], rel=1e-5)
    assert two["weight"] == pytest.approx(model[0].weight.flatten().tolist(), abs=1e-4)
