"""The loan model: zero residual is the cohort, labels never reach their own logit, money balances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.core.errors import ModelError
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.models.history import months_since_miss, recency_class, state_history
from pc_pipeline.models.loan_trajectory import (
    LoanTrajectoryModel,
    TrajectoryConfig,
    previous_states,
    settle_maturity,
)
from pc_pipeline.schemas.states import N_STATES, contract_moves, mature_rows
from pc_pipeline.schemas.units import LOAN_FEATURES

SIZE = {"d_model": 16, "n_heads": 2, "n_layers": 1, "dropout": 0.0}


def cohort_rows(batch: int, months: int) -> torch.Tensor:
    rng = np.random.default_rng(3)
    allowed = contract_moves().copy()
    allowed[:4, 6] = False
    rows = rng.gamma(1.0, size=(batch, months, 7, 7)) * allowed
    rows[..., 4:, :] = np.eye(7)[4:]
    return torch.from_numpy(rows / rows.sum(-1, keepdims=True)).float()


def loans(batch: int, term: int = 12) -> torch.Tensor:
    features = torch.zeros(batch, len(LOAN_FEATURES))
    values = {"class_consumer": 1, "amortization_annuity": 1, "log_balance": np.log(12_000.0)}
    values |= {"interest_rate": 0.06, "term_months": term, "internal_score": 55.0, "ltv": np.nan}
    for name, value in values.items():
        features[:, LOAN_FEATURES.index(name)] = value
    return features


def stirred(**changes: object) -> LoanTrajectoryModel:
    torch.manual_seed(0)
    model = LoanTrajectoryModel(TrajectoryConfig(**{**SIZE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_an_untrained_model_returns_its_cohort_exactly() -> None:
    model = LoanTrajectoryModel(TrajectoryConfig(**SIZE)).eval()
    rows = cohort_rows(5, 8)
    logits = model(loans(5), rows)["state_logits"]
    assert torch.allclose(logits.softmax(-1), rows[:, :, 0], atol=1e-6)


def test_moves_the_cohort_excludes_stay_excluded_and_absorbed_loans_stay() -> None:
    rows = cohort_rows(5, 8)
    states = torch.tensor([0, 1, 2, 3, 4, -1, -1, -1]).expand(5, -1)
    p = stirred()(loans(5), rows, states)["state_logits"].softmax(-1)
    before = previous_states(states, None, 5, 8, torch.device("cpu"))
    given = rows.gather(2, before[..., None, None].expand(-1, -1, 1, 7))[:, :, 0]
    assert bool((p[given == 0] == 0).all())
    assert torch.equal(p[:, 5], torch.eye(N_STATES)[4].expand(5, -1))


def test_a_label_reaches_only_later_logits() -> None:
    model, rows = stirred(), cohort_rows(4, 10)
    states = torch.zeros(4, 10, dtype=torch.long)
    changed = states.clone()
    changed[:, 6] = 1
    with torch.no_grad():
        first = model(loans(4), rows, states)["state_logits"]
        second = model(loans(4), rows, changed)["state_logits"]
    assert torch.equal(first[:, :7], second[:, :7])
    assert not torch.equal(first[:, 7], second[:, 7])


def test_recency_by_hand() -> None:
    past = torch.tensor([[0, 1, 0, 0, 2, 0]])
    assert months_since_miss(past).tolist() == [[-1, 0, 1, 2, 0, 1]]
    assert months_since_miss(torch.zeros(2, 3, dtype=torch.long), torch.tensor([5, -1])).tolist() == [
        [5, 6, 7],
        [-1, -1, -1],
    ]
    assert recency_class(torch.tensor([-1, 0, 6, 8, 9, 30])).tolist() == [11, 0, 6, 6, 7, 10]


def test_history_before_the_window_counts() -> None:
    model, rows = stirred(), cohort_rows(2, 3)
    with torch.no_grad():
        out = model(loans(2), rows, months_since_miss=torch.tensor([1, -1]))["state_logits"]
    assert not torch.allclose(out[0] - rows[0, :, 0].log(), out[1] - rows[1, :, 0].log())


@pytest.mark.parametrize("n_members", [1, 2])
def test_generation_with_the_cache_follows_the_law_of_forward(n_members: int) -> None:
    """Draws of the first three months occur as often as forward says (4 standard errors)."""
    model, rows, n = stirred(n_members=n_members), cohort_rows(1, 3), 4000
    states = model.generate(loans(1, 40), rows, n_samples=n, seed=5)["states"][:, 0]
    for path in ((0, 0, 0), (0, 1, 0), (1, 2, 3), (0, 5, 5)):
        label = torch.tensor([path])
        with torch.no_grad():
            p = model(loans(1, 40), rows, label)["state_logits"].softmax(-1)[0]
        expected = float(p[torch.arange(3), label[0]].prod())
        share = float((states == label).all(-1).float().mean())
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 1e-9


def test_settled_logits_are_the_contract_rule() -> None:
    rows = cohort_rows(6, 4)
    final = torch.zeros(6, 4, dtype=torch.bool)
    final[:, 3] = True
    for state in range(7):
        previous = torch.full((6, 4), state)
        given = rows[:, :, state].log()
        settled = settle_maturity(given, previous, final).softmax(-1)
        expected = mature_rows(rows.numpy(), final.numpy())[:, :, state]
        assert np.allclose(settled.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("cash", ["states", "ratios"])
def test_money_balances_on_every_path_and_month(cash: str) -> None:
    batch, months = 3, 16
    out = stirred().generate(loans(batch), cohort_rows(batch, months), n_samples=40, cash=cash, seed=1)
    gone = (out["principal"] + out["charge_offs"]).cumsum(-1)
    lent = loans(1)[0, LOAN_FEATURES.index("log_balance")].double().exp()
    assert torch.allclose(gone + out["balances"], lent.expand(gone.shape), rtol=0, atol=1e-6)
    assert float(out["balances"].min()) >= 0.0
    assert float(out["payments"].min()) >= 0.0
    assert bool((out["losses"] <= out["charge_offs"]).all())
    absorbed = out["states"] >= 4
    assert float(out["balances"][absorbed].abs().max()) < 1e-6
    assert set(out["states"][..., -1].unique().tolist()) <= {1, 2, 3, 4, 5, 6}  # nobody performs past the end


def test_a_punctual_loan_pays_the_level_instalment() -> None:
    """12,000 at 6 % over 12 months: 1,032.80 a month (annuity formula)."""
    stay = torch.eye(7).expand(1, 12, 7, 7).clone()
    out = LoanTrajectoryModel(TrajectoryConfig(**SIZE)).generate(loans(1), stay)
    assert torch.allclose(out["payments"], torch.full_like(out["payments"], 1032.797), atol=0.01)
    assert out["states"][0, 0].tolist() == [0] * 11 + [6]


def test_same_seed_same_draws() -> None:
    model, rows = stirred(), cohort_rows(3, 6)
    first, again, other = (model.generate(loans(3), rows, n_samples=9, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["states"], other["states"])


def test_payments_are_read_causally_and_may_be_absent() -> None:
    model, rows = stirred(reads_payments=True), cohort_rows(3, 8)
    paid = torch.rand(3, 20)
    changed = paid.clone()
    changed[:, 16:] += 0.5  # known from the end of month 4 on
    with torch.no_grad():
        without = model(loans(3), rows)["state_logits"]
        empty = model(loans(3), rows, history=torch.full((3, 8, 12), torch.nan))["state_logits"]
        one = model(loans(3), rows, history=paid.unfold(1, 12, 1)[:, :8])["state_logits"]
        two = model(loans(3), rows, history=changed.unfold(1, 12, 1)[:, :8])["state_logits"]
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.equal(one[:, 5:], two[:, 5:])
    assert torch.equal(without, empty)
    assert not torch.equal(one, without)


def test_generated_payments_feed_the_next_month() -> None:
    """Logits given which states were drawn are those of forward on the drawn ratios."""
    model, rows = stirred(reads_payments=True), cohort_rows(4, 6)
    features = torch.cat([loans(4, 40), torch.zeros(4, 2), torch.rand(4, 12)], dim=1)
    drawn = model.generate(features, rows, seed=3, with_logits=True)
    line = torch.cat([features[:, -12:], drawn["payment_ratios"][0].float()], dim=1)
    states = drawn["states"][0]
    final = torch.zeros(4, 6, dtype=torch.bool)
    with torch.no_grad():
        again = model(features, rows, states, history=line.unfold(1, 12, 1)[:, :6], is_final=final)
    before = torch.cat([torch.zeros(4, 1, dtype=torch.long), states[:, :-1]], dim=1)
    living = before < 4
    assert torch.allclose(
        drawn["state_logits"][0][living].softmax(-1), again["state_logits"][living].softmax(-1), atol=1e-5
    )
    assert int(living.sum()) > 6


def test_saved_and_loaded_it_says_the_same(tmp_path) -> None:
    model, rows = stirred(), cohort_rows(3, 6)
    save_model(tmp_path, model)
    again, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(loans(3), rows)["state_logits"], again(loans(3), rows)["state_logits"])


def test_members_are_averaged_travel_with_the_weights_and_fall_silent_together(tmp_path) -> None:
    model, rows = stirred(n_members=3), cohort_rows(3, 6)
    past = state_history(torch.zeros(3, 6, dtype=torch.long))
    with torch.no_grad():
        apart, _ = model.residual(loans(3), past, apart=True)
        assert apart.shape == (3, 3, 6, N_STATES)
        assert not torch.allclose(apart[0], apart[1])
        assert torch.allclose(model.residual(loans(3), past)[0], apart.mean(0))
        save_model(tmp_path, model)
        again, _ = load_model(tmp_path)
        assert torch.equal(again.residual(loans(3), past, apart=True)[0], apart)
        model.silence()
        assert torch.allclose(model(loans(3), rows)["state_logits"].softmax(-1), rows[:, :, 0], atol=1e-6)


@pytest.mark.parametrize("n_members", [1, 2])
def test_every_parameter_of_the_state_model_learns(n_members: int) -> None:
    model, rows = stirred(n_members=n_members), cohort_rows(6, 9)
    features = torch.cat([loans(6), torch.zeros(6, 2), torch.full((6, 12), torch.nan)], dim=1)
    features[:, LOAN_FEATURES.index("vintage_index")] = torch.arange(6.0)
    states = torch.tensor([0, 1, 2, 3, 0, 0, 1, 0, 0]).expand(6, -1)
    out = model(features, rows, states, is_final=torch.zeros(6, 9, dtype=torch.bool))["state_logits"]
    torch.nn.functional.cross_entropy(out.flatten(0, 1), states.flatten()).backward()
    silent = [
        name
        for name, parameter in model.named_parameters()
        if "value_head" not in name and "season" not in name and parameter.grad is None
    ]
    assert silent == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_wrong_inputs_are_refused() -> None:
    model = stirred()
    with pytest.raises(ModelError, match="cohort_transitions"):
        model(loans(2), cohort_rows(3, 4))
    with pytest.raises(ModelError, match="cash"):
        model.generate(loans(2), cohort_rows(2, 4), cash="guess")
