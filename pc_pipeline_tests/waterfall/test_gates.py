"""Soft gates tend to the hard result; gradients agree with finite differences; machine code agrees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_pipeline.core.errors import DealError
from pc_pipeline.waterfall import Deal, load_deal, run_waterfall, tranche_metrics
from pc_pipeline.waterfall.gradients import present_value, soft_figures
from pc_pipeline_tests.shared_data import ROOT
from pc_pipeline_tests.waterfall.random_deals import POOL, collections, deals, extras

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
DEAL = ROOT / "data" / "deals"


def both(name: str, temperature: float, n_paths: int = 6) -> tuple[np.ndarray, np.ndarray]:
    deal = load_deal(DEAL / f"{name}.yaml")
    cash = collections(7, n_paths, 36, default_rate=0.012, recovery=0.4)
    hard = run_waterfall(cash, deal, pool_balance=POOL, index_rate_PT=0.04)
    soft = run_waterfall(
        torch.tensor(cash), deal, pool_balance=POOL, index_rate_PT=0.04, temperature=temperature
    )
    assert soft.conservation_error <= 1e-9
    return hard.cash, soft.cash.numpy()


@pytest.mark.parametrize("name", ["clo_four_tranche", "auto_four_tranche"])
def test_soft_tends_to_hard(name: str) -> None:
    gaps = [
        np.abs(np.subtract(*both(name, t))).sum(axis=(1, 2)).mean() / POOL for t in (1e-2, 1e-3, 1e-4, 1e-6)
    ]
    assert gaps[-1] < 1e-3
    assert gaps[-1] <= gaps[0] + 1e-12


def test_hard_tensors_equal_arrays() -> None:
    deal = load_deal(DEAL / "rmbs_sequential_z.yaml")
    cash = collections(8, 4, 30, default_rate=0.01, recovery=0.4)
    arrays = run_waterfall(cash, deal, pool_balance=POOL)
    tensors = run_waterfall(torch.tensor(cash), deal, pool_balance=POOL, gate="hard")
    np.testing.assert_allclose(tensors.cash.numpy(), arrays.cash, atol=1e-6)


@pytest.mark.parametrize("figure", ["price", "expected_loss", "irr", "wal_years", "cushion"])
def test_gradients_agree_with_finite_differences(figure: str) -> None:
    """With respect to collections in one random direction, a coupon, a trigger and a class's size."""
    deal = load_deal(DEAL / "clo_four_tranche.yaml")
    base = collections(11, 3, 24, default_rate=0.02, recovery=0.4)
    toward = base * np.random.default_rng(12).uniform(0, 0.2, base.shape)

    def measure(move: torch.Tensor) -> torch.Tensor:
        cash = torch.tensor(base) * 0.8 + move[0] * torch.tensor(toward)
        terms = {"coupon.Mezz": 0.08 + move[1], "trigger.oc_Mezz": 1.08 + move[2]}
        terms["balance.Mezz"] = 0.15 * POOL * (1.0 + move[3])
        result = run_waterfall(cash, deal, pool_balance=POOL, overrides=terms, temperature=0.05)
        return soft_figures(result, "Mezz", discount_rate=0.07)[figure]

    start = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    measure(start).backward()
    assert start.grad is not None
    for place in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[place] = 1e-6
        with torch.no_grad():
            slope = (measure(step) - measure(-step)) / 2e-6
        assert float(start.grad[place]) == pytest.approx(float(slope), rel=2e-4, abs=1e-7), place


def test_present_value_by_hand() -> None:
    flows = torch.tensor([[0.0, 110.0]], dtype=torch.float64)
    times = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert float(present_value(flows, times, 0.1)[0]) == pytest.approx(110 / 1.21)


def check_compiled(deal: Deal, seed: int) -> None:
    cash = collections(seed, 5, 12, default_rate=0.03, recovery=0.4)
    given_too = {"index_rate_PT": 0.04, "extra_PT": extras(seed, 5, 12), "pool_balance": POOL}
    arrays = run_waterfall(cash, deal, **given_too)
    machine = run_waterfall(cash, deal, method="compiled", **given_too)
    for figure in (
        "interest_paid",
        "principal_paid",
        "balance",
        "fees",
        "accounts",
        "ratios",
        "passed",
        "triggers",
    ):
        np.testing.assert_allclose(getattr(machine, figure), getattr(arrays, figure), rtol=1e-13, atol=1e-9)


def test_machine_code_agrees() -> None:
    check_compiled(load_deal(DEAL / "auto_four_tranche.yaml"), 5)


@pytest.mark.parametrize("method", ["arrays", "compiled"])
def test_the_classes_alone_are_the_same(method: str) -> None:
    """More paths than a lane or a block holds, and not a multiple of either."""
    deal = load_deal(DEAL / "clo_four_tranche.yaml")
    cash = np.repeat(collections(3, 5, 12, default_rate=0.03, recovery=0.4), 61, axis=0)
    whole = run_waterfall(cash, deal, pool_balance=POOL)
    part = run_waterfall(cash, deal, pool_balance=POOL, method=method, keep="classes")
    for figure in ("interest_paid", "principal_paid", "balance", "interest_shortfall", "passed", "residual"):
        np.testing.assert_allclose(getattr(part, figure), getattr(whole, figure), rtol=1e-13, atol=1e-9)
    assert part.fees is None
    measures = tranche_metrics(part)
    np.testing.assert_allclose(measures.irr, tranche_metrics(whole).irr, rtol=1e-9)


@pytest.mark.slow
@MANY
@given(deal=deals(), seed=st.integers(0, 1000))
def test_machine_code_agrees_over_many_deals(deal: Deal, seed: int) -> None:
    check_compiled(deal, seed)


def test_machine_code_takes_no_tensors() -> None:
    deal = load_deal(DEAL / "clo_four_tranche.yaml")
    with pytest.raises(DealError, match="unknown method"):
        run_waterfall(torch.zeros((1, 3, 5)), deal, pool_balance=POOL, method="compiled")
    with pytest.raises(DealError, match="soft with tensors"):
        run_waterfall(np.zeros((1, 3, 5)), deal, pool_balance=POOL, gate="soft")
