"""Expected cash given the path: the fast form and the one with gradients against the loan-by-loan oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pc_pipeline.simulation.conditional import ConditionalPool
from pc_pipeline.simulation.gradient_cash import gradient_cash, gradient_pool, pool_losses
from pc_pipeline.simulation.reference import expected_cash
from pc_pipeline_tests.simulation.hand import index_by_hand, pool_by_hand, residual_by_hand, rows_by_hand

N_LOANS, N_MONTHS = 70, 14


@pytest.fixture(scope="module", params=[False, True], ids=["cohort rows", "own rows"])
def case(request):
    pool = pool_by_hand(N_LOANS, N_MONTHS, seed=3)
    residual = residual_by_hand(N_LOANS, 3) if request.param else None
    return pool, rows_by_hand(2, 3, N_MONTHS, 3), index_by_hand(2, N_MONTHS, 3), residual


def test_fast_form_is_the_oracle(case):
    pool, rows, index, residual = case
    cash = ConditionalPool(pool, residual).cash(rows, index)
    for path in range(2):
        exact = expected_cash(pool, rows[path], index[path], residual)
        np.testing.assert_allclose(cash[path], exact, atol=5e-9 * pool.total_balance)  # rows are float32


def test_differentiable_form_is_the_fast_form(case):
    pool, rows, index, residual = case
    fast = ConditionalPool(pool, residual).cash(rows, index)
    own = None if residual is None else torch.from_numpy(residual)
    slow = gradient_cash(gradient_pool(pool), torch.from_numpy(rows), torch.from_numpy(index), own)
    np.testing.assert_allclose(slow.numpy(), fast, atol=5e-9 * pool.total_balance)
    principal = fast[:, :, 1:4].sum(axis=(1, 2))
    np.testing.assert_allclose(principal, pool.total_balance, rtol=1e-9)


def test_losses_by_loan_add_up(case):
    pool, rows, index, residual = case
    tilt = np.array([[0.3, 1.0], [0.7, 0.0]])
    given = ConditionalPool(pool, residual, n_threads=1)
    cash, by_loan = given.split(rows, index, tilt)
    lost = (cash[:, :, 3] - cash[:, :, 4]).sum(axis=1)
    np.testing.assert_allclose(by_loan.sum(axis=0), tilt.T @ lost, rtol=1e-12)
    alone = ConditionalPool(pool.take(np.array([11])), None if residual is None else residual[[11]])
    own = alone.losses(rows, index) * alone.pool.total_balance
    np.testing.assert_allclose(by_loan[11], tilt.T @ own, rtol=1e-9)


def test_gradients_against_finite_differences():
    pool = gradient_pool(pool_by_hand(12, 6, seed=1))
    rows = torch.from_numpy(rows_by_hand(1, 3, 6, 1)).double()
    index = torch.from_numpy(index_by_hand(1, 6, 1))
    rate = pool.rate_L.clone().requires_grad_(True)

    def loss_and_interest(given):
        cash = gradient_cash(pool.with_fields({"rate_L": given}), rows, index)
        return pool_losses(cash, pool.balance).sum() + cash[..., 0].sum() / pool.balance

    (gradient,) = torch.autograd.grad(loss_and_interest(rate), rate)
    step = torch.zeros_like(rate)
    step[4] = 1e-6
    with torch.no_grad():
        bump = (loss_and_interest(rate + step) - loss_and_interest(rate - step)) / 2e-6
    assert float(gradient[4]) == pytest.approx(float(bump), rel=1e-6)
