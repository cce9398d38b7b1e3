"""Sensitivities, reverse stress, attribution, pool changes, uncertainty; small study, untrained networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.analysis.attribution import attribute
from pc_pipeline.engines.analysis.mix import pick_loans, simulate_mix
from pc_pipeline.engines.analysis.pool_changes import PoolChanges
from pc_pipeline.engines.analysis.reverse_stress import Target, read_target, reverse_stress
from pc_pipeline.engines.analysis.sensitivities import (
    ATTRIBUTES,
    POOL,
    bumped,
    bumped_simulation,
    inputs,
    sensitivities,
)
from pc_pipeline.engines.analysis.study import Study
from pc_pipeline.engines.analysis.uncertainty import carry, uncertainty, written_out
from pc_pipeline.engines.tail_source import TailSource, decode
from pc_pipeline.loans.pool import pool_snapshot
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.models.loan_residual import LoanResidual, LoanResidualConfig
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.schemas.units import MACRO_NAMES
from pc_pipeline.simulation import monte_carlo
from pc_pipeline.simulation.distil import CompiledLoans, DistilConfig
from pc_pipeline.simulation.pool import DEFAULT_SEVERITY
from pc_pipeline.simulation.rows import loan_inputs
from pc_pipeline.simulation.tails import TailConfig
from pc_pipeline.training.ensemble import Member
from pc_pipeline.waterfall.config import WaterfallConfig

N_MONTHS, N_LOANS = 12, 120
QUICK = TailConfig(n_directions=2, n_gradients=3, n_pilot=24, n_candidates=2**13)
UNEMPLOYMENT = MACRO_NAMES.index("unemployment_rate")


@pytest.fixture(scope="module")
def study() -> Study:
    torch.manual_seed(0)
    vae = MacroVAE(MacroVAEConfig(hidden_dim=8, latent_dim=4, n_layers=1, seq_length=N_MONTHS)).eval()
    network = TransitionTransformer(TransitionConfig(d_model=16, n_heads=2, n_layers=1)).eval()
    residual = LoanResidual(LoanResidualConfig(n_months=N_MONTHS)).eval()
    with torch.no_grad():
        vae.scale_M.fill_(0.3)  # generated paths vary
        vae.shift_M.copy_(
            torch.logit(
                (torch.tensor([0.02, 0.05, 0.02, 0.03, 0.035, 100, 400, 100, 0.08]) - vae.lower_M)
                / (vae.upper_M - vae.lower_M)
            )
        )
        effect = network.macro_effect.view(4, 4, 7, 9)
        effect[:, 0, 1, UNEMPLOYMENT] = 0.5  # arrears rise with unemployment, and with falling growth
        effect[:, 0, 1, 0] = -0.4
        effect[:, 3, 4, UNEMPLOYMENT] = 0.3
        residual.out.weight.normal_(0.0, 0.05)
        residual.wide.weight.normal_(0.0, 0.02)
        residual.severity.copy_(torch.from_numpy(DEFAULT_SEVERITY))
    pool = pool_snapshot(LoanTapeGenerator(n_loans=N_LOANS, random_seed=2).generate_static_features())
    residual.scale.fit(torch.from_numpy(loan_inputs(pool)))
    for model in (vae, network, residual):
        model.requires_grad_(False)
    return Study(
        pool=pool,
        macro_vae=vae,
        transition_model=network,
        compiled=CompiledLoans(model=residual),
        deal=WaterfallConfig().to_deal(),
        n_months=N_MONTHS,
        seed=5,
    )


@pytest.fixture(scope="module")
def mix_run(study):
    return simulate_mix(study, {"baseline": 0.7, "severe": 0.3}, 60, config=QUICK)


def test_a_study_of_models_in_memory_is_the_study(study):
    """The tape, its networks and a deal, as the aggregator takes them; and with pandas."""
    tape = LoanTapeGenerator(n_loans=N_LOANS, random_seed=2).generate_static_features()
    same = Study.from_models(
        tape, study.macro_vae, study.transition_model, compiled=study.compiled, n_months=N_MONTHS, seed=5
    )
    macro = study.macro("baseline", 8)
    np.testing.assert_array_equal(same.simulate(macro).cash_PTC, study.simulate(macro).cash_PTC)
    assert same.deal == study.deal
    bare = Study.from_models(study.pool.to_pandas(), study.macro_vae, study.transition_model, n_months=6)
    assert bare.compiled is None
    broken = study.pool.with_columns(current_balance=pl.lit(0.0))
    with pytest.raises(SimulationError, match="without balance"):
        Study.from_models(broken, study.macro_vae, study.transition_model)


def test_a_loan_model_in_memory_is_compiled_for_its_pool(study):
    torch.manual_seed(3)
    teacher = LoanTrajectoryModel(TrajectoryConfig(d_model=8, n_heads=1, n_layers=1)).eval()
    lessons = DistilConfig(n_loans=12, n_paths=2, n_steps=2)
    pool, vae = study.pool[:40], study.macro_vae
    found = Study.from_models(pool, vae, study.transition_model, teacher, n_months=N_MONTHS, distil=lessons)
    assert found.compiled is not None
    assert found.residual_LHJ.shape == (40, 15, 6)


def test_tail_paths_are_weighted_and_their_mean_is_that_of_plain_ones(study, mix_run):
    results = mix_run.results
    assert results.strata_P is not None
    assert results.weights.mean() == pytest.approx(1.0)
    assert results.weights[results.scenario_P == "severely_adverse"].sum() / 60 == pytest.approx(
        0.3, abs=0.15
    )
    plain = simulate_mix(study, {"baseline": 0.7, "severe": 0.3}, 200, is_plain=True).results
    first, second = results.interval("expected_loss"), plain.interval("expected_loss")
    error = np.hypot(first.upper - first.lower, second.upper - second.lower) / 3.92
    assert abs(first.value - second.value) < 4 * error
    raw = dataclasses.replace(results, control=None).interval(
        "expected_loss"
    )  # 120 loans: mostly their own luck
    assert first.upper - first.lower < 0.6 * (raw.upper - raw.lower)


def test_the_aggregator_takes_it_as_a_macro_source(study):
    found = PortfolioAggregator(study.deal).monte_carlo_simulate(
        study.pool,
        study.macro_vae,
        study.transition_model,
        n_simulations=40,
        n_months=N_MONTHS,
        compiled=study.compiled,
        macro_source=TailSource(study, QUICK),
    )
    assert found.strata_P is not None
    assert np.bincount(found.strata_P).min() == 2
    assert found.weights.mean() == pytest.approx(1.0)
    assert np.ptp(found.weights) > 0


def test_gradients_are_bumps(study):
    found, given = sensitivities(study, n_paths=2, n_lines=20), inputs(study, "baseline", 2, 20)
    macro = found.macro.filter(
        (pl.col("target") == POOL) & (pl.col("series") == "unemployment_rate") & (pl.col("month_index") == 3)
    )
    bump = bumped(study, given, "macro", (3, UNEMPLOYMENT), 2e-3)
    assert macro["per_unit"][0] == pytest.approx(bump[POOL], rel=2e-3)
    assert macro["per_unit"][0] > 0
    for attribute_name, step in (("internal_score", 0.2), ("interest_rate", 1e-3)):
        own = found.loans.filter((pl.col("target") == POOL) & (pl.col("attribute") == attribute_name))
        bump = bumped(study, given, "shift", (list(ATTRIBUTES).index(attribute_name),), step)
        assert own["per_unit"][0] == pytest.approx(bump[POOL], rel=2e-2)
    term = found.deal.filter((pl.col("target") == "Senior IRR") & (pl.col("term") == "coupon.Senior"))
    assert term["per_unit"][0] == pytest.approx(
        bumped(study, given, "coupon.Senior", (), 1e-5)["Senior IRR"], rel=1e-3
    )
    assert found.by_series().height == len(found.values)


def test_gradient_agrees_with_drawn_loans_under_common_random_numbers(study):
    found = sensitivities(study, n_paths=24, n_lines=N_LOANS)
    slope = found.macro.filter((pl.col("target") == POOL) & (pl.col("series") == "unemployment_rate"))[
        "per_unit"
    ]
    drawn, error = bumped_simulation(study, "baseline", "unemployment_rate", 0.004, 24)
    assert abs(slope.sum() - drawn) < 4 * error


def test_the_path_found_hits_the_target_and_no_start_is_nearer(study):
    level = 1.3 * float(study.expected_losses(study.macro("baseline", 32)).mean())
    found = reverse_stress(study, Target(kind="pool_loss", level=level), n_starts=2, n_lines=40, n_confirm=64)
    assert 0 < found.distance < 8
    assert found.probability == pytest.approx(stats.norm.sf(found.distance))
    nearer = torch.from_numpy((found.noise_TM * found.distance_expected / found.distance)[None]).float()
    on_path = float(study.expected_losses(decode(study, "baseline", nearer).detach().double().numpy())[0])
    assert on_path == pytest.approx(level, rel=0.02)
    assert found.is_confirmed
    assert 0.3 < found.hits.value < 0.7  # 64 simulations: half give or take three standard errors
    assert np.linalg.norm(found.noise_TM) == pytest.approx(found.distance)
    # any plain path that loses as much lies further out: |e| of T * 9 normals
    assert found.distance < np.sqrt(N_MONTHS * 9) - 2
    assert "one in" in found.summary()


def test_targets_are_read_and_checked(study):
    assert read_target("loss=Senior:5").of == "Senior"
    assert read_target("oc=oc_Senior").level == 24
    with pytest.raises(ConfigError, match="cannot read"):
        read_target("pool:0.1")
    with pytest.raises(ConfigError, match="no such class"):
        reverse_stress(study, read_target("loss=Nobody"))


def test_parts_add_up_exactly(study, mix_run):
    found = attribute(study, mix_run.results, mix_run.macro_PTM, n_series_paths=6, n_lines=12, max_paths=30)
    for name, frame in found.frames().items():
        if name == "attribution":
            continue
        sums = (
            frame.group_by("of", "measure").agg(pl.col("part").sum()).join(found.values, on=["of", "measure"])
        )
        gap = (sums["part"] - sums["value"]).abs().max()
        assert gap < 1e-12, name
    pool = found.by("asset_class").filter((pl.col("of") == "pool") & (pl.col("measure") == "expected_loss"))
    assert (pool["part"] > 0).all()
    with pytest.raises(SimulationError, match="differ"):
        attribute(study, mix_run.results, mix_run.macro_PTM[:5])


def test_a_block_by_reuse_is_a_full_run_without_it(study, mix_run):
    """With cohorts' features unmoved the two are the same run; recalculated means move it a little."""
    changes = PoolChanges(study, mix_run.macro_PTM, mix_run.simulated)
    block = np.arange(0, N_LOANS, 10)
    found = changes.remove(block)
    keep = np.setdiff1d(np.arange(N_LOANS), block)
    again = changes.block_cash(keep)
    np.testing.assert_allclose(again + changes.block_cash(block), mix_run.simulated.cash_PTC, atol=1e-6)
    assert found.after.pool_balance == pytest.approx(study.balance - found.balance)
    full = changes.full_run(block)
    assert found.after.expected_loss == pytest.approx(
        full.expected_loss, rel=1e-6
    )  # these rows see classes alone
    both = changes.add(block).after
    assert both.pool_balance == pytest.approx(study.balance + found.balance)
    with pytest.raises(SimulationError, match="no such loans"):
        changes.remove(["nobody"])


def test_a_block_of_one_class_is_its_part_of_the_run(study, mix_run, monkeypatch):
    """Rows of the block's own cohorts, in batches of whatever size the run takes."""
    changes = PoolChanges(study, mix_run.macro_PTM, mix_run.simulated)
    block = pick_loans(study, "asset_class = 'realestate'")
    rest = np.setdiff1d(np.arange(N_LOANS), block)
    monkeypatch.setattr(monte_carlo, "MOST_ROWS_MB", 0.05)
    together = changes.block_cash(block) + changes.block_cash(rest)
    np.testing.assert_allclose(together, mix_run.simulated.cash_PTC, rtol=1e-6, atol=1e-3)


def test_loans_are_picked_by_name_or_condition(study):
    names = study.pool["loan_id"].to_list()
    np.testing.assert_array_equal(pick_loans(study, f"{names[4]}, {names[2]}"), [2, 4])
    consumer = pick_loans(study, "asset_class = 'consumer'")
    assert (study.pool["asset_class"].gather(consumer) == "consumer").all()
    with pytest.raises(ConfigError, match="no loan fits"):
        pick_loans(study, "original_balance < 0")


def test_the_variance_of_an_ensemble_splits(study):
    """Families 0.05 apart, members 0.002 apart: model and parameter parts are found, common paths cancel."""
    draws = np.random.default_rng(0)
    base = simulate_mix(study, {"baseline": 1.0}, 100, is_plain=True).results

    def member(shift):
        return dataclasses.replace(base, portfolio_losses=base.portfolio_losses + 0.2 + shift)

    shifts = draws.normal(0, 0.002, 12)
    families = {
        name: [member(centre + shift) for shift in shifts] for name, centre in (("a", 0.0), ("b", 0.05))
    }
    table = uncertainty(families)
    row = table.filter((pl.col("of") == "pool") & (pl.col("measure") == "expected_loss")).to_dicts()[0]
    assert row["model"] == pytest.approx(0.05**2 / 2, rel=1e-6)
    assert row["parameter"] == pytest.approx(shifts.var(ddof=1), rel=1e-6)
    assert row["sampling"] == pytest.approx(base.portfolio_losses.var(ddof=1) / 100, rel=0.35)
    assert row["lower"] < row["value"] < row["upper"]
    assert {"pool", "Senior"} <= set(written_out(table.with_columns(sampling=pl.lit(1e-4)))["of"])
    alone = uncertainty({"a": families["a"][:1]})
    assert alone["parameter"].sum() == alone["model"].sum() == 0.0
    with pytest.raises(SimulationError, match="members"):
        uncertainty({})
    with pytest.raises(SimulationError, match="differ in size"):
        uncertainty({"a": families["a"], "b": families["b"][:3]})


def test_noise_of_the_paths_is_no_parameter(study):
    """Members that differ by noise alone, path by path: next to nothing is left for the parameter part."""
    draws = np.random.default_rng(1)
    base = simulate_mix(study, {"baseline": 1.0}, 100, is_plain=True).results
    sizes = []
    for _ in range(20):
        members = [
            dataclasses.replace(base, portfolio_losses=0.3 + draws.normal(0, 0.05, 100)) for _ in range(6)
        ]
        row = uncertainty({"a": members}).row(0, named=True)
        sizes.append(row["parameter"] / row["sampling"])
    assert np.mean(sizes) < 0.5  # uncorrected it would be 1


def test_members_are_carried_along_the_same_paths(study):
    member = Member(
        transitions=study.transition_model, residual=study.compiled.model if study.compiled else None, seed=0
    )
    found = carry(study, [member, member], {"baseline": 1.0}, 20)
    assert list(found) == ["loan model", "cohorts alone"]
    first, second = found["loan model"]
    np.testing.assert_array_equal(first.portfolio_losses, second.portfolio_losses)
    plain = simulate_mix(study, {"baseline": 1.0}, 20, is_plain=True).results
    np.testing.assert_array_equal(first.portfolio_losses, plain.portfolio_losses)
    table = uncertainty(found)
    assert table["parameter"].max() == pytest.approx(0.0, abs=1e-12)
