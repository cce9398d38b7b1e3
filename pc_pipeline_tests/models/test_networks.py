"""Every network, driven by what it says of its inputs: shapes, gradients, lengths, causality, saving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pc_pipeline.core.errors import ModelError
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.spec import example_inputs
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer

B, T = 3, 10


def transition() -> TransitionTransformer:
    return TransitionTransformer(
        TransitionConfig(d_model=16, n_heads=2, n_layers=1, dropout=0.0, max_months=40)
    )


def trajectory() -> LoanTrajectoryModel:
    return LoanTrajectoryModel(
        TrajectoryConfig(d_model=16, n_heads=2, n_layers=1, dropout=0.0, diffusion_steps=8, max_months=40)
    )


# maker, the input that runs along months, how to read one tensor (B,T,...) from the answer
NETWORKS: dict[str, tuple[Callable[[], Any], str, Callable[[Any], Tensor]]] = {
    "transition_transformer": (transition, "macro_path", lambda out: out),
    "loan_trajectory": (trajectory, "cohort_transitions", lambda out: out["state_logits"].softmax(-1)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def prepared(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), example_inputs(model.describe_inputs(), B=B, T=T)


@every_network
def test_answers_every_month_with_probabilities(name: str) -> None:
    model, inputs = prepared(name)
    answer = NETWORKS[name][2](model(**inputs))
    assert answer.shape[:2] == (B, T)
    assert torch.allclose(answer.sum(-1), torch.ones(answer.shape[:-1]), atol=1e-6)


@every_network
def test_the_longest_path_works_and_one_more_month_is_refused(name: str) -> None:
    model, _ = prepared(name)
    longest = example_inputs(model.describe_inputs(), B=B, T=40)
    assert NETWORKS[name][2](model(**longest)).shape[1] == 40
    with pytest.raises(ModelError, match="length"):
        model(**example_inputs(model.describe_inputs(), B=B, T=41))


@every_network
def test_the_future_does_not_reach_the_past(name: str) -> None:
    model, inputs = prepared(name)
    _, along, read = NETWORKS[name]
    other = example_inputs(model.describe_inputs(), seed=1, B=B, T=T)
    changed = inputs | {along: torch.cat([inputs[along][:, :6], other[along][:, 6:]], dim=1)}
    with torch.no_grad():
        before, after = read(model(**inputs)), read(model(**changed))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6], after[:, 6])


@every_network
def test_gradients_are_finite_and_reach_the_input(name: str) -> None:
    model, inputs = prepared(name)
    _, along, read = NETWORKS[name]
    inputs[along].requires_grad_(True)
    read(model(**inputs)).square().sum().backward()
    gradient = inputs[along].grad
    assert gradient is not None
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@every_network
def test_saved_and_loaded_it_says_the_same(name: str, tmp_path) -> None:
    model, inputs = prepared(name)
    save_model(tmp_path, model, {"metrics": {"loss": 1.0}})
    again, card = load_model(tmp_path)
    read = NETWORKS[name][2]
    with torch.no_grad():
        assert torch.equal(read(model(**inputs)), read(again(**inputs)))
    assert card["class"] == type(model).__name__
