"""Guarantees of the cohort network: rows are probabilities, causal, and the same however computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import ConfigError, ModelError
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.models.spec import example_inputs
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.schemas.states import LoanState, contract_moves, observable_moves
from pc_pipeline.schemas.units import COHORT_FEATURES

SUM_TOLERANCE = 1e-6


def stirred(config: TransitionConfig | None = None) -> TransitionTransformer:
    """A small network whose every weight is at work."""
    torch.manual_seed(0)
    model = TransitionTransformer(config or TransitionConfig(d_model=16, n_heads=2, n_layers=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def cohorts_and_macro(batch: int = 4, months: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    found = example_inputs(stirred().describe_inputs(), B=batch, T=months)
    cohorts = found["cohort_features"]
    cohorts[:, :4] = torch.eye(4)[torch.arange(batch) % 4]
    cohorts[0, 7] = torch.nan
    return cohorts, found["macro_path"]


@pytest.mark.parametrize("moves", ["contract", "observable"])
def test_rows_are_probabilities_and_impossible_moves_exactly_zero(moves: str) -> None:
    model = stirred(TransitionConfig(d_model=16, n_heads=2, n_layers=1, moves=moves))
    with torch.no_grad():
        rows = model(*cohorts_and_macro())
    allowed = torch.from_numpy(contract_moves() if moves == "contract" else observable_moves())
    assert rows.shape == (4, 30, 7, 7)
    assert float((rows.sum(-1) - 1).abs().max()) < SUM_TOLERANCE
    assert bool((rows[..., ~allowed] == 0).all())
    assert bool((rows[..., :4, LoanState.matured] == 0).all())
    assert torch.equal(rows[..., 4:, :], torch.eye(7)[4:].expand(4, 30, 3, 7))


def test_a_change_of_the_future_leaves_the_past_bit_identical() -> None:
    model, (cohorts, macro) = stirred(), cohorts_and_macro()
    changed = macro.clone()
    changed[:, 17:] *= 1.3
    with torch.no_grad():
        before, after = model(cohorts, macro), model(cohorts, changed)
    assert torch.equal(before[:, :17], after[:, :17])
    assert not torch.equal(before[:, 17], after[:, 17])


def test_rows_for_all_pairs_equal_forward_pair_by_pair_alone_or_in_company() -> None:
    model, (cohorts, macro) = stirred(), cohorts_and_macro()
    calendar = torch.stack([torch.arange(30) % 12, torch.arange(30) % 7], dim=-1)
    with torch.no_grad():
        whole = model.rows(cohorts, macro, calendar)
        alone = torch.cat([model.rows(cohorts, path[None], calendar) for path in macro])
        for path in range(4):
            one = model(cohorts, macro[path].expand(4, -1, -1), calendar.expand(4, -1, -1))
            assert torch.allclose(whole[path], one[:, :, :4], atol=1e-6)
    assert torch.equal(whole, alone)


def test_age0_replaces_the_age_column() -> None:
    model, (cohorts, macro) = stirred(), cohorts_and_macro()
    older = cohorts.clone()
    older[:, COHORT_FEATURES.index("vintage_age_months")] = 40.0
    with torch.no_grad():
        assert torch.equal(model.rows(cohorts, macro, age0=torch.full((4,), 40.0)), model.rows(older, macro))


def test_predict_reads_pandas_polars_and_arrays_alike() -> None:
    model, (cohorts, macro) = stirred(), cohorts_and_macro()
    columns = {name: cohorts[:, number].numpy() for number, name in enumerate(COHORT_FEATURES)}
    answers = [
        model.predict(pd.DataFrame(columns), macro),
        model.predict(pl.DataFrame(columns), macro.numpy().astype(np.float64)),
        model.predict(cohorts, macro),
    ]
    assert answers[0].shape == (4, 4, 30, 7, 7)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    with pytest.raises(ModelError, match="mean_ltv"):
        model.predict(pl.DataFrame(columns).drop("mean_ltv"), macro)


def test_anchored_network_answers_macro_by_the_stated_term_only() -> None:
    model, (cohorts, macro) = stirred(), cohorts_and_macro()
    model.anchor_macro(torch.zeros_like(model.macro_effect))
    with torch.no_grad():
        assert torch.equal(model(cohorts, macro), model(cohorts, macro * 1.1))
    assert not model.macro_effect.requires_grad


def test_saved_and_loaded_it_says_the_same(tmp_path) -> None:
    model, inputs = stirred(), cohorts_and_macro()
    model.anchor_macro()
    save_model(tmp_path, model)
    again, _ = load_model(tmp_path)
    assert bool(again.macro_anchored)
    with torch.no_grad():
        assert torch.equal(model(*inputs), again(*inputs))


def test_wrong_inputs_are_refused() -> None:
    model, (cohorts, macro) = stirred(), cohorts_and_macro()
    with pytest.raises(ModelError, match="macro_path"):
        model(cohorts, macro[..., :8])
    with pytest.raises(ModelError, match="not finite"):
        model(cohorts, macro * torch.nan)
    with pytest.raises(ConfigError, match="moves"):
        TransitionConfig(moves="any")
    with pytest.raises(ConfigError, match="fixed"):
        TransitionConfig(n_states=8)
