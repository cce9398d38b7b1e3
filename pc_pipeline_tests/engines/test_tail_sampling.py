"""Paths along the loss: through the public door, on few names, stored; reinvestment of simulated cash."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.tail_source import TailSource
from pc_pipeline.simulation.estimators import expected_loss, pool_measures
from pc_pipeline.simulation.monte_carlo import simulation_table
from pc_pipeline.waterfall.config import WaterfallConfig
from pc_pipeline_tests.engines.test_analyses import N_MONTHS, QUICK, study  # noqa: F401

MIX = {"baseline": 0.7, "severe": 0.3}


def whole_run(of, **more):
    return PortfolioAggregator(of.deal).monte_carlo_simulate(
        of.pool,
        of.macro_vae,
        of.transition_model,
        n_simulations=40,
        scenario_mix=MIX,
        n_months=N_MONTHS,
        compiled=of.compiled,
        **more,
    )


def test_tails_are_one_keyword_away(study):  # noqa: F811
    plain, tails = whole_run(study), whole_run(study, sampling="tails", tail=QUICK)
    assert plain.strata_P is None
    assert plain.control is None
    assert np.bincount(tails.strata_P).min() == 2
    assert tails.weights.mean() == pytest.approx(1.0)
    assert np.ptp(tails.control.luck_P) > 0
    first, second = plain.interval("expected_loss"), tails.interval("expected_loss")
    assert first.lower < second.upper
    assert second.lower < first.upper
    again = whole_run(study, sampling="tails", tail=QUICK)
    np.testing.assert_array_equal(again.portfolio_losses, tails.portfolio_losses)
    with pytest.raises(ConfigError, match="no such sampling"):
        whole_run(study, sampling="best")
    with pytest.raises(ConfigError, match="noise of a VAE"):
        whole_run(study, sampling="tails", macro_source=study.macro("baseline", 40))


def test_a_stored_run_keeps_its_intervals(study):  # noqa: F811
    source = TailSource(study, QUICK)
    drawn = source.draw_mix(MIX, 40, N_MONTHS, 3)
    simulated = study.simulate(drawn, luck=source.own_luck(drawn.values_PTM))
    aggregator = PortfolioAggregator(study.deal)
    direct = aggregator.report(simulated, scenario="mix")
    stored = aggregator.report(simulation_table(simulated, "mix"), study.balance)
    for (name, one), other in zip(direct.intervals().items(), stored.intervals().values(), strict=True):
        assert (one.value, one.lower, one.upper) == pytest.approx((other.value, other.lower, other.upper)), (
            name
        )
    assert direct.tranche_report().equals(stored.tranche_report())


def test_twenty_unequal_loans_along_the_loss(study):  # noqa: F811
    """Own luck of single names dominates: stratified, weighted, controlled paths still meet plain ones."""
    draws = np.random.default_rng(0)
    scale = pl.Series(np.round(np.exp(1.2 * draws.standard_normal(20)), 2))
    names = study.pool[:20].with_columns(
        (pl.col(name) * scale).round(2).alias(name) for name in ("current_balance", "original_balance")
    )
    few = dataclasses.replace(study, pool=names)
    assert few.arrays.balance_L.max() > 0.15 * few.balance
    source, found = TailSource(few, QUICK), []
    plain = few.simulate(few.macro("severely_adverse", 4000)).losses_P
    v = float(np.quantile(plain, 0.95))
    truth = [plain, (plain > v) * 1.0, np.maximum(plain - v, 0.0)]
    for seed in range(16):
        drawn = source.draw("severely_adverse", 200, N_MONTHS, seed)
        run = dataclasses.replace(few, seed=seed).simulate(drawn, luck=source.own_luck(drawn.values_PTM))
        weights = run.weights_P / 200
        at = (v, run.losses_P, weights, run.strata_P)
        found.append(
            [
                weights @ (run.losses_P - run.control.of_mean()),
                weights @ ((run.losses_P > v) - run.control.of_exceedance(*at)),
                weights @ (np.maximum(run.losses_P - v, 0.0) - run.control.of_excess(*at)),
            ]
        )
    for values, exact in zip(np.array(found).T, truth, strict=True):
        error = np.hypot(values.std(ddof=1) / 4, exact.std() / np.sqrt(exact.size))
        assert abs(values.mean() - exact.mean()) < 4 * error
    first = expected_loss(run.losses_P, run.weights_P, run.strata_P)
    second = pool_measures(run.losses_P, run.weights_P, run.strata_P, run.control)["expected_loss"]
    assert second.upper - second.lower < 0.5 * (first.upper - first.lower)


def test_reinvested_principal_buys_a_slice_of_the_simulated_pool(study):  # noqa: F811
    """What is kept buys (m' - m) of the living pool; collections after it are m' times the pool's own.

    Recoveries scale by the m of their default, so months with one are left to the waterfall's own tests.
    """
    cash = study.simulate(study.macro("baseline", 30)).cash_PTC
    config = WaterfallConfig(reinvestment_period=6)
    paid = PortfolioAggregator(config).run(cash, study.balance)
    grown = paid.multiplier
    assert grown.max() > 1.0
    living = study.balance - np.cumsum(cash[:, :, 1:4].sum(axis=2), axis=1)
    before = np.concatenate([np.ones((30, 1)), grown[:, :-1]], axis=1)
    np.testing.assert_allclose(
        paid.totals["reinvested"], (grown - before) * living, atol=1e-6 * study.balance
    )
    own = before * cash[:, :, :3].sum(axis=2)
    plain = cash[:, :, 4] == 0
    assert plain.sum() > 100
    np.testing.assert_allclose(paid.totals["collections"][plain], own[plain], rtol=1e-9, atol=1e-6)
