"""Identities that hold for every deal and every collection, against the readable oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pc_pipeline.waterfall import Deal, WaterfallConfig, run_waterfall
from pc_pipeline.waterfall.engine import WaterfallResult
from pc_pipeline.waterfall.reference import run_reference
from pc_pipeline_tests.waterfall.random_deals import POOL, collections, deals, extras

MONEY = 1e-6  # of a pool of one million: rounding of sums
SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
MANY = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
N_MONTHS = 12


def run_random(
    deal: Deal, seed: int, n_paths: int = 3
) -> tuple[WaterfallResult, np.ndarray, dict, np.ndarray]:
    cash = collections(seed, n_paths, N_MONTHS, default_rate=(seed % 5) * 0.02, recovery=0.4)
    extra, index = extras(seed, n_paths, N_MONTHS), np.linspace(-0.01, 0.09, N_MONTHS)
    result = run_waterfall(cash, deal, pool_balance=POOL, index_rate_PT={"SOFR": index}, extra_PT=extra)
    return result, cash, extra, index


def check_identities(deal: Deal, seed: int) -> None:
    """Conservation, no negative figure, one path as many, and the oracle."""
    result, cash, extra, index = run_random(deal, seed)
    assert result.conservation_error <= 1e-9
    for figure in ("interest_paid", "principal_paid", "balance", "interest_shortfall", "fees", "accounts"):
        assert (getattr(result, figure) >= -MONEY).all(), figure
    assert (result.residual >= -MONEY).all()
    path = seed % result.n_paths
    own = {name: values[path] for name, values in extra.items()}
    alone = run_waterfall(cash[path], deal, pool_balance=POOL, index_rate_PT=index, extra_PT=own)
    for figure in ("interest_paid", "principal_paid", "balance", "fees", "ratios", "residual"):
        assert np.array_equal(getattr(alone, figure)[0], getattr(result, figure)[path]), figure
    rows = run_reference(cash[path], deal, pool_balance=POOL, index_rate_T={"SOFR": index}, extra_T=own)
    for place, name in enumerate(result.tranche_names):
        for figure in ("interest_paid", "principal_paid", "balance", "capitalized", "written_down"):
            expected = [row.get(f"{figure}.{name}", 0.0) for row in rows]
            np.testing.assert_allclose(
                getattr(result, figure)[path, :, place], expected, atol=MONEY, err_msg=figure
            )
    for place, test in enumerate(deal.tests):
        assert [row[f"passed.{test.name}"] for row in rows] == result.passed[path, :, place].tolist()
    np.testing.assert_allclose(result.residual[path], [row["residual"] for row in rows], atol=MONEY)


@FEW
@given(deal=deals(), seed=SEEDS)
def test_identities_and_oracle(deal: Deal, seed: int) -> None:
    check_identities(deal, seed)


@pytest.mark.slow
@MANY
@given(deal=deals(), seed=SEEDS)
def test_identities_and_oracle_over_two_thousand_deals(deal: Deal, seed: int) -> None:
    check_identities(deal, seed)


@FEW
@given(seed=SEEDS, severity=st.floats(0, 1))
def test_seniority_is_respected(seed: int, severity: float) -> None:
    """With the standard waterfall a class loses principal only when every class below it lost all."""
    cash = collections(seed, 8, 24, default_rate=0.06 * severity, recovery=0.3)
    result = run_waterfall(cash, WaterfallConfig().to_deal(), pool_balance=POOL)
    unpaid = result.balance[:, -1, :3]
    for senior in range(2):
        hurt = unpaid[:, senior] > MONEY
        below = result.principal_paid[:, :, senior + 1].sum(axis=1)
        assert (below[hurt] <= MONEY).all()


@FEW
@given(seed=SEEDS, factor=st.floats(0.5, 1.0))
def test_less_cash_never_repays_notes_sooner(seed: int, factor: float) -> None:
    """Without tests and reinvestment, less cash leaves every class with at least the balance it had."""
    tranches = [dict(t, oc_trigger=None, ic_trigger=None) for t in WaterfallConfig().tranches]
    deal = WaterfallConfig(tranches=tranches, reinvestment_period=0).to_deal()
    cash = collections(seed, 4, 24, default_rate=0.03, recovery=0.3)
    less = cash.copy()
    less[..., [0, 2, 4]] *= factor
    good, bad = (run_waterfall(c, deal, pool_balance=POOL) for c in (cash, less))
    assert (bad.balance[..., :3].cumsum(axis=-1) >= good.balance[..., :3].cumsum(axis=-1) - MONEY).all()


def test_losses_move_up_the_capital_structure() -> None:
    """More defaults never lower any class's unpaid principal (no reinvestment, same everything else)."""
    deal = WaterfallConfig(reinvestment_period=0).to_deal()
    unpaid = []
    for rate in np.linspace(0, 0.05, 11):
        cash, pool = np.zeros((36, 5)), POOL
        for t in range(36):
            lost = rate * pool
            repaid = (pool - lost) / (36 - t)
            cash[t] = (pool * 0.08 / 12, repaid, 0.0, lost, 0.0)
            pool -= lost + repaid
        unpaid.append(run_waterfall(cash, deal, pool_balance=POOL).balance[0, -1, :3])
    assert unpaid[-1][1] > 0
    assert (np.diff(unpaid, axis=0) >= -MONEY).all()
