"""Models on disk: what comes back is what was saved, and a changed file refuses to load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from pc_pipeline.core.errors import ModelError
from pc_pipeline.models import checkpoint
from pc_pipeline.models.checkpoint import data_fingerprint, load_model, read_card, register, save_model


@dataclass(frozen=True, kw_only=True, slots=True)
class LineConfig:
    width: int = 3
    names: tuple[str, ...] = ("a", "b")


@register(LineConfig)
class Line(nn.Module):
    def __init__(self, config: LineConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, 1)
        self.register_buffer("scale", torch.tensor([2.0], dtype=torch.float64))


@register(LineConfig)
class Counts:
    """Not a network: tensors all the same."""

    def __init__(self, config: LineConfig) -> None:
        self.config = config
        self.counts = torch.zeros(0)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.counts = state["counts"]


def _rewrite(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


def test_a_network_comes_back_bit_for_bit_with_its_card(tmp_path: Path) -> None:
    line = Line(LineConfig(width=4, names=("x",)))
    save_model(tmp_path, line, {"metrics": {"val_loss": np.float64(0.5)}, "seeds": {"train": 7}})
    loaded, card = load_model(tmp_path)
    assert loaded.config == line.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(line.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert card["metrics"] == {"val_loss": 0.5}
    assert card["seeds"] == {"train": 7}
    assert card["n_parameters"] == 6
    assert card["versions"]["torch"] == torch.__version__
    assert not loaded.training


def test_a_table_of_counts_is_saved_like_a_network(tmp_path: Path) -> None:
    counts = Counts(LineConfig())
    counts.counts = torch.arange(49).reshape(7, 7)
    save_model(tmp_path, counts)
    assert torch.equal(load_model(tmp_path)[0].counts, counts.counts)


def test_saving_twice_gives_the_same_bytes_and_keeps_one_predecessor(tmp_path: Path) -> None:
    line = Line(LineConfig())
    first = save_model(tmp_path / "a", line).read_bytes()
    assert save_model(tmp_path / "b", line).read_bytes() == first
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(line.linear.weight, value)
        save_model(tmp_path / "a", line)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 2
    assert load_model(tmp_path / "a")[0].linear.weight[0, 0] == 3.0


def test_a_save_that_dies_before_the_card_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(LineConfig())
    nn.init.constant_(line.linear.weight, 1.0)
    save_model(tmp_path, line)
    nn.init.constant_(line.linear.weight, 2.0)

    def dies(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_card_digest", dies)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, line)
    monkeypatch.undo()
    assert load_model(tmp_path)[0].linear.weight[0, 0] == 1.0


@pytest.mark.parametrize("key", ["config", "weights", "metrics", "class"])
def test_a_changed_card_refuses_to_load(tmp_path: Path, key: str) -> None:
    save_model(tmp_path, Line(LineConfig()))
    _rewrite(tmp_path, **{key: {"width": 5} if key in ("config", "metrics") else "Other"})
    with pytest.raises(ModelError, match="changed after it was written"):
        load_model(tmp_path)


def test_changed_weights_refuse_to_load(tmp_path: Path) -> None:
    save_model(tmp_path, Line(LineConfig()))
    weights = next(tmp_path.glob("*.safetensors"))
    payload = bytearray(weights.read_bytes())
    payload[-1] ^= 1
    weights.write_bytes(payload)
    with pytest.raises(ModelError, match="weights were changed"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_the_config_refuse_to_load(tmp_path: Path) -> None:
    save_model(tmp_path, Line(LineConfig()))
    card = read_card(tmp_path) | {"config": {"width": 9, "names": ["a"]}}
    card["card_sha256"] = checkpoint._card_digest(card)
    _rewrite(tmp_path, **card)
    with pytest.raises(ModelError, match="do not fit the network"):
        load_model(tmp_path)


def test_a_card_cannot_name_a_class_outside_the_room(tmp_path: Path) -> None:
    save_model(tmp_path, Line(LineConfig()))
    card = read_card(tmp_path) | {"class": "Popen", "module": "subprocess"}
    card["card_sha256"] = checkpoint._card_digest(card)
    _rewrite(tmp_path, **card)
    with pytest.raises(ModelError, match="unknown class"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", '{"format": 99}', "[1]"])
def test_no_card_or_nonsense_says_so(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    line = Line(LineConfig())
    nn.init.constant_(line.linear.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        save_model(tmp_path, line)
    assert not (tmp_path / "card.json").exists()


def test_reserved_keys_and_unknown_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="overwrite"):
        save_model(tmp_path, Line(LineConfig()), {"weights": "mine"})
    with pytest.raises(ModelError, match="cannot be saved"):
        save_model(tmp_path, nn.Linear(1, 1))


def test_the_fingerprint_sees_values_names_and_order() -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": [0.5, None]})
    prints = {
        data_fingerprint(frame),
        data_fingerprint(frame.reverse()),
        data_fingerprint(frame.rename({"a": "c"})),
        data_fingerprint(frame, np.zeros(3)),
        data_fingerprint(frame, np.zeros((3, 1))),
        data_fingerprint(frame, torch.zeros(3)),
    }
    assert len(prints) == 6
    assert data_fingerprint(frame) == data_fingerprint(frame.clone())
