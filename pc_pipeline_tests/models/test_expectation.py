"""Expected cash against walking every history of a small loan by hand, and against finite differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pc_pipeline.core.errors import ModelError
from pc_pipeline.models.expectation import Lines, expected_cash, pool_cash, representative_lines
from pc_pipeline.schemas.states import contract_moves, mature_rows, observable_moves

DTYPE = torch.float64


def annuity(balance: float, rate: float, term: int) -> list[float]:
    """S(0)..S(n) of a level instalment."""
    growth = (1 + rate / 12) ** term
    instalment = balance * rate / 12 * growth / (growth - 1)
    schedule = [balance]
    for _ in range(term):
        schedule.append(schedule[-1] * (1 + rate / 12) - instalment)
    schedule[-1] = 0.0
    return schedule


def walk(
    rows: np.ndarray,
    schedule: list[float],
    term: int,
    rates: np.ndarray,
    age: int,
    state: int,
    arrears: int,
    since: int,
    classes: list[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cash (T, 5) before recoveries, states (T, 7), living balance at the end (2,)) by enumeration.

    The rule of the ledger, transcribed month by month for every possible history.
    """
    months = len(rows)
    cash, states, left = np.zeros((months, 5)), np.zeros((months, 7)), np.zeros(2)
    n_classes = rows.shape[1] - 3

    def balance(tau: int) -> float:
        return schedule[min(max(tau, 0), term)]

    def due_rate(instalment: int) -> float:
        return rates[max(instalment - age - 1, 0)] / 12

    for history in product(range(7), repeat=months):
        probability, here, tau, missed = 1.0, state, age - arrears, since
        trace = []
        for month, new in enumerate(history):
            t = age + month + 1
            if here >= 4:
                probability *= float(new == here)
                trace.append((month, new, np.zeros(5)))
                if probability == 0:
                    break
                continue
            if here == 0:
                longest = len(classes) - 1
                row = classes[0 if missed < 0 else min(max(missed, 1), longest)]
            else:
                row = n_classes + here - 1
            full = np.zeros((7, 7))
            full[here] = rows[month, row]
            probability *= mature_rows(full, t >= term)[here, new]
            if probability == 0:
                break
            flow, before = np.zeros(5), balance(tau)
            if new <= 2:
                after = max(tau, min(t, term) - new)
            elif new in (5, 6):
                after = term
            else:
                after = tau
            if new == 5:
                accrued = sum(due_rate(u) for u in range(tau + 1, t + 1))
                ahead = balance(min(t, term))
                flow[:3] = accrued * before, before - ahead, ahead
            elif new == 4:
                flow[3] = before
            elif new != 3:
                flow[0] = sum(due_rate(u) * balance(u - 1) for u in range(tau + 1, after + 1))
                flow[1] = before - balance(after)
            trace.append((month, new, flow))
            tau, here = after, new
            missed = 0 if new in (1, 2, 3) else (missed + 1 if missed >= 0 else -1)
        else:
            for month, new, flow in trace:
                cash[month] += probability * flow
                states[month, new] += probability
            if here <= 2:
                left[0] += probability * balance(tau)
            elif here == 3:
                left[1] += probability * balance(tau)
    return cash, states, left


def random_rows(rng: np.random.Generator, months: int, n_rows: int, jumps: bool) -> np.ndarray:
    """(T, n_rows, 7) rows; with jumps every move servicer data show, else contract moves."""
    allowed = (observable_moves() if jumps else contract_moves())[[0] * (n_rows - 3) + [1, 2, 3]]
    rows = rng.dirichlet(np.ones(7), size=(months, n_rows)) * allowed
    return rows / rows.sum(-1, keepdims=True)


CASES = [
    # term, months, age, state, arrears, since, jumps, classes
    (12, 4, 0, 0, 0, -1, False, [0]),
    (4, 5, 0, 0, 0, -1, False, [0]),
    (3, 4, 1, 0, 0, -1, True, [0]),
    (6, 4, 4, 3, 4, 0, True, [0]),
    (9, 4, 5, 2, 1, 0, True, [0]),
    (3, 3, 2, 1, 1, 0, True, [0]),
    (12, 4, 3, 0, 0, 1, True, [0, 1, 2]),
    (12, 4, 3, 0, 0, -1, True, [0, 1, 1, 2]),
]


@pytest.mark.parametrize("case", CASES)
def test_expected_cash_is_the_sum_over_all_histories(case: tuple) -> None:
    term, months, age, state, arrears, since, jumps, classes = case
    rng = np.random.default_rng(CASES.index(case))
    rows = random_rows(rng, months, max(classes) + 4, jumps)
    rates = rng.uniform(0.02, 0.12, months)
    schedule = annuity(1000.0, 0.06, term)
    cash, states, left = walk(rows, schedule, term, rates, age, state, arrears, since, classes)
    lines = Lines.make(
        torch.tensor([schedule]),
        torch.tensor([term]),
        torch.tensor([age]),
        torch.tensor([state]),
        torch.tensor([arrears]),
        torch.tensor([since]),
    )
    options = {"since_class": torch.tensor(classes)} if len(classes) > 1 else {}
    args = torch.tensor(rows)[None], lines, torch.tensor(rates)[None]
    got, probabilities = expected_cash(*args, 0.4, horizon_sale=False, **options)
    assert np.allclose(probabilities[0].numpy(), states, atol=1e-12)
    assert np.allclose(got[0, :, :4].numpy(), cash[:, :4], atol=1e-9)
    assert np.allclose(got[0, :, 4].numpy(), 0.6 * cash[:, 3], atol=1e-9)
    sold, _ = expected_cash(*args, 0.4, **options)
    end = (sold - got)[0, -1].numpy()
    assert np.allclose(end, [0, 0, left[0], left[1], 0.6 * left[1]], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.booleans())
def test_principal_charge_off_and_sale_return_the_balance(seed: int, term: int, jumps: bool) -> None:
    """Scheduled + prepaid + charged off = balance at the cut-off, whatever the rows."""
    rng = np.random.default_rng(seed)
    rows = torch.tensor(np.stack([random_rows(rng, 20, 4, jumps) for _ in range(3)]))
    age = torch.tensor([0, term // 2, max(term - 1, 0)])
    schedule = torch.tensor([annuity(500.0, 0.09, term)] * 3)
    lines = Lines.make(schedule, torch.full((3,), term), age)
    cash, states = expected_cash(rows, lines, torch.full((3,), 0.09))
    assert torch.allclose(cash[..., 1:4].sum((-1, -2)), lines.outstanding_L, rtol=1e-10)
    assert torch.allclose(states.sum(-1), torch.ones(3, 20, dtype=DTYPE), atol=1e-12)
    assert float(cash.min()) > -1e-9


def test_a_worked_example() -> None:
    """Two instalments of a 3-month bullet at 12 %: pays, misses one, cures.

    S = 100, 100, 100, 0 and interest 1 a month. Month 1 pays 1. Month 2 goes to 30dpd: nothing. Month 3 is
    final: the cure is maturity, pays 2 of interest and 100.
    """
    rows = torch.zeros(1, 3, 4, 7, dtype=DTYPE)
    rows[0, 0, 0, 0] = rows[0, 1, 0, 1] = rows[0, 2, 1, 0] = 1.0
    lines = Lines.make(torch.tensor([[100.0, 100.0, 100.0, 0.0]]), torch.tensor([3]))
    cash, states = expected_cash(rows, lines, torch.tensor([0.12], dtype=DTYPE))
    assert cash[0].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [2, 100, 0, 0, 0]]
    assert states[0].argmax(-1).tolist() == [0, 1, 6]


def test_recoveries_arrive_late_and_the_rest_at_the_horizon() -> None:
    rows = torch.zeros(1, 6, 4, 7, dtype=DTYPE)
    rows[:, :, 0, 4] = rows[:, :, 1:, 0] = 1.0
    rows[:, 0, 0] = torch.tensor([0.0, 0, 0, 0, 1, 0, 0])
    lines = Lines.make(torch.full((1, 13), 100.0, dtype=DTYPE), torch.tensor([12]))
    lag = (0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5)
    cash, _ = expected_cash(rows, lines, torch.tensor([0.0]), 0.4, recovery_lag=lag)
    assert cash[0, :, 3].tolist() == [100, 0, 0, 0, 0, 0]
    assert cash[0, :, 4].tolist() == pytest.approx([0, 0, 30, 0, 0, 30])
    open_end, _ = expected_cash(rows, lines, torch.tensor([0.0]), 0.4, recovery_lag=lag, horizon_sale=False)
    assert open_end[0, :, 4].tolist() == pytest.approx([0, 0, 30, 0, 0, 0])


def test_gradients_agree_with_finite_differences() -> None:
    rng = np.random.default_rng(3)
    raw = torch.tensor(rng.normal(size=(1, 2, 3, 4, 7)), requires_grad=True)
    rate = torch.tensor(rng.uniform(0.02, 0.1, (1, 2, 3)), requires_grad=True)
    severity = torch.tensor(rng.uniform(0.2, 0.8, (2, 3)), requires_grad=True)
    mask = torch.tensor(observable_moves()[:4])
    schedule = torch.tensor([annuity(10.0, 0.06, 5), annuity(10.0, 0.06, 5)])
    lines = Lines.make(
        schedule, torch.tensor([5, 3]), torch.tensor([0, 2]), torch.tensor([0, 2]), torch.tensor([0, 2])
    )

    def value(raw: torch.Tensor, rate: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:
        rows = raw.masked_fill(~mask, -torch.inf).softmax(-1)
        cash, _ = expected_cash(rows, lines, rate, severity, recovery_lag=(0.3, 0.7))
        return pool_cash(cash, lines)

    assert torch.autograd.gradcheck(value, (raw, rate, severity), fast_mode=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age_L": torch.tensor([3])}, "not below the term"),
        ({"state_L": torch.tensor([4])}, "not living"),
        ({"state_L": torch.tensor([1]), "arrears_L": torch.tensor([0])}, "against the state"),
        ({"state_L": torch.tensor([2]), "age_L": torch.tensor([1])}, "more arrears"),
    ],
)
def test_positions_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Lines.make(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([3]), **change)


def test_rows_and_schedules_of_the_wrong_size_are_refused() -> None:
    lines = Lines.make(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([3]))
    with pytest.raises(ModelError, match="do not fit"):
        expected_cash(torch.zeros(2, 3, 4, 7), lines, torch.tensor([0.1]))
    with pytest.raises(ModelError, match="too short"):
        Lines.make(torch.tensor([[3.0, 2.0]]), torch.tensor([3]))


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 99))
def test_representatives_keep_the_balance(n_loans: int, n_lines: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    balance = rng.lognormal(10, 1, n_loans)
    keys = np.stack([rng.integers(0, 4, n_loans), rng.normal(size=n_loans)], axis=1)
    rows, weights = representative_lines(balance, keys, n_lines)
    assert len(rows) == len(set(rows.tolist())) <= max(n_lines, 1)
    assert weights @ balance[rows] == pytest.approx(balance.sum())
    assert (weights > 0).all()
