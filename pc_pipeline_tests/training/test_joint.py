"""Joint fine-tuning and calibration on a small synthetic portfolio."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.training.calibration import _beyond_chance, _Moves, calibrate
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.joint import GUARD, SHORTER, EndToEndTrainer, JointConfig
from pc_pipeline.training.macro_start import warm_start
from pc_pipeline.training.portfolio import (
    balance_weights,
    make_problem,
    make_targets,
    model_cash,
    portfolio_gaps,
    portfolio_loss,
    tail_mean,
)
from pc_pipeline.training.trajectories import TrajectoryTrainer
from pc_pipeline.training.transitions import TransitionTrainer
from pc_pipeline.waterfall.config import WaterfallConfig
from pc_pipeline.waterfall.engine import run_waterfall

MONTHS = 24
SCENARIOS = ("baseline", "severely_adverse")


class Payer:
    """The part of `PortfolioAggregator` that fine-tuning needs."""

    def __init__(self) -> None:
        self.deal = WaterfallConfig().to_deal()

    def apply_waterfall(self, cash: Any, pool_balance: float, index_rate: Any = None) -> dict[str, Any]:
        result = run_waterfall(cash, self.deal, pool_balance=pool_balance, index_rate_PT=index_rate)
        return {"tranche_cashflows": result.cash}


@cache
def tables() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(loans, panel, macro): 250 loans, 2 scenarios x 4 paths, 24 months."""
    generator = MacroScenarioGenerator(MONTHS, start_date="2020-01-01")
    macro = pl.concat([macro_table(generator, name, 4) for name in SCENARIOS])
    tape = LoanTapeGenerator(
        n_loans=250, n_months=MONTHS, n_vintages=4, start_date="2020-01-01", random_seed=3
    )
    book = tape.generate_scenario(macro)
    return book.loans, book.panel, macro


@cache
def _trained_states() -> tuple[dict[str, torch.Tensor], ...]:
    loans, panel, macro = tables()
    generator = MacroScenarioGenerator(MONTHS)
    vae, transitions, trajectory = _blank()
    paths = np.concatenate([generator.generate_paths(name, 60) for name in SCENARIOS])
    warm_start(vae, torch.tensor(paths, dtype=torch.float32), torch.tensor([0] * 60 + [2] * 60))
    TransitionTrainer(transitions, lr=3e-3).fit(
        cohort_table(loans), transition_table(panel, loans), macro, epochs=2
    )
    histories = prepare_trajectories(panel, loans, macro)
    TrajectoryTrainer(trajectory, lr=1e-3).fit(
        loans, histories, epochs=1, transition_model=transitions, macro_data=macro
    )
    return tuple(
        {name: value.clone() for name, value in model.state_dict().items()}
        for model in (vae, transitions, trajectory)
    )


def _blank() -> tuple[MacroVAE, TransitionTransformer, LoanTrajectoryModel]:
    torch.manual_seed(0)
    return (
        MacroVAE(MacroVAEConfig(seq_length=MONTHS, hidden_dim=8, n_layers=1, decoder_dim=8)),
        TransitionTransformer(TransitionConfig(d_model=16, n_heads=2, n_layers=1, dropout=0.0)),
        LoanTrajectoryModel(TrajectoryConfig(d_model=16, n_heads=2, n_layers=1, dropout=0.0)),
    )


def models() -> tuple[MacroVAE, TransitionTransformer, LoanTrajectoryModel]:
    """Three roughly trained models, fresh copies."""
    found = _blank()
    for model, state in zip(found, _trained_states(), strict=True):
        model.load_state_dict(state)
        model.eval()
    return found


def trainer(lr: float = 1e-4, **joint: Any) -> EndToEndTrainer:
    sizes = {"n_lines": 12, "n_reference": 24, "steps_per_epoch": 2, "n_paths": 2} | joint
    config = TrainConfig(patience=1000, n_threads=1)
    return EndToEndTrainer(*models(), Payer(), lr=lr, config=config, joint=JointConfig(**sizes))


def problem(n_lines: int = 24) -> tuple[Any, Any, torch.Tensor]:
    loans, panel, macro = tables()
    paths = macro_paths(macro)
    made = make_problem(prepare_trajectories(panel, loans, macro), panel, loans, paths, n_lines)
    return *made, torch.from_numpy(paths.values[[0, 4]]).float()


def test_fine_tuning_improves_the_portfolio_and_guards_the_components() -> None:
    loans, panel, macro = tables()
    history = trainer().fit(loans, panel, target_loss_rate=None, epochs=3, macro_data=macro)
    before, after = history["before"], history["after"]
    assert history["is_changed"]
    assert after["portfolio_loss"] < before["portfolio_loss"]
    for name in ("macro_loss", "transition_loss", "trajectory_loss"):
        assert after[name] <= before[name] + GUARD * abs(before[name])
    assert history["loss_rate_target"] == pytest.approx(history["loss_rate_history"])
    assert after["loss_rate_severely_adverse"] > after["loss_rate_baseline"]


def test_steps_that_hurt_a_component_are_not_kept() -> None:
    """A hundredfold target pulls the loss far from history: the guard must give the old models back."""
    loans, panel, macro = tables()
    run = trainer(lr=0.05, weight=1e4)
    start = {name: value.clone() for name, value in run.models.state_dict().items()}
    history = run.fit(loans, panel, target_loss_rate=0.9, epochs=2, macro_data=macro)
    assert not history["is_changed"]
    assert history["after"] == history["before"]
    assert all(torch.equal(value, start[name]) for name, value in run.models.state_dict().items())


def test_it_runs_without_macro_data_and_says_what_stands_in() -> None:
    loans, panel, _ = tables()
    history = trainer().fit(loans.to_pandas(), panel.to_pandas(), epochs=1)
    assert "VAE" in history["notes"][0]
    assert history["loss_rate_target"] == 0.02
    assert np.isfinite(history["loss"]).all()


def test_the_portfolio_gradient_reaches_all_three_models() -> None:
    posed, history, _ = problem(12)
    vae, transitions, trajectory = models()
    targets = make_targets(history, Payer().apply_waterfall, None)
    z, noise = vae.draw_noise(MONTHS, 8)
    macro = vae.decode(z, torch.tensor([0, 2] * 4), noise)
    cash, index = model_cash(posed, macro, transitions, trajectory)
    returns = Payer().apply_waterfall(cash.clamp(min=0), 1.0, index)["tranche_cashflows"].sum(1)
    portfolio_loss(portfolio_gaps(cash, torch.tensor([0, 1] * 4), returns, targets)).backward()
    for parameter in (
        vae.centre_SGM,
        vae.phi_MM,
        transitions.base,
        transitions.macro_effect,
        trajectory.wide_loan.weight,
    ):
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().max()) > 0


def test_expected_cash_returns_the_opening_balance() -> None:
    posed, history, macro = problem()
    networks = models()[1:]
    with torch.no_grad():
        cash, _ = model_cash(posed, macro, *networks)
    assert torch.allclose(cash[..., 1:4].sum((1, 2)), torch.ones(2, dtype=torch.float64), atol=1e-6)
    observed = history.cash_PTC[..., 1:4].sum((1, 2))
    assert torch.allclose(observed, torch.ones_like(observed), atol=1e-4)  # cents


def test_balanced_weights_agree_with_the_larger_set() -> None:
    small, _, macro = problem(20)
    large, _, _ = problem(120)
    networks = models()[1:]
    tuned = balance_weights(small, large, macro, *networks)
    with torch.no_grad():
        losses = [
            (cash[..., 3] - cash[..., 4]).sum(1)
            for cash, _ in (model_cash(which, macro, *networks) for which in (small, tuned, large))
        ]
    assert torch.allclose(losses[1], losses[2], rtol=1e-4)
    assert not torch.allclose(losses[0], losses[2], rtol=1e-3)


def test_observed_losses_are_those_of_the_panel() -> None:
    """Loss rate by hand: losses within the horizon, 90dpd at the end charged off, over opening balances."""
    loans, panel, macro = tables()
    trajectories = prepare_trajectories(panel, loans, macro)
    posed, history, _ = problem()
    severity = history.severity_C.numpy()
    last = panel["reporting_month"].max()
    lost, opened = 0.0, 0.0
    for row in range(len(trajectories)):
        start = int(trajectories.start_month[row])
        if last.year * 12 + last.month - start < posed.months:  # not seen for the whole horizon
            continue
        opened += trajectories.initial_balance[row]
        lost += trajectories.losses[row, : posed.months].sum()
        if trajectories.states[row, posed.months - 1] == LoanState.dpd90:
            code = int(np.argmax(trajectories.features[row, :4]))
            lost += severity[code] * trajectories.balances[row, posed.months - 1]
    assert history.loss_rate == pytest.approx(lost / opened, rel=1e-6)


def test_the_tail_is_the_mean_of_the_worst_tenth() -> None:
    assert float(tail_mean(torch.arange(20.0))) == 18.5
    assert float(tail_mean(torch.tensor([1.0, 3.0, 2.0]))) == 3.0


def test_targets_that_make_no_sense_are_refused() -> None:
    _, history, _ = problem()
    with pytest.raises(DataError, match="no loss to match"):
        make_targets(history, Payer().apply_waterfall, 0.0)
    loans, panel, macro = tables()
    with pytest.raises(DataError):
        make_problem(
            prepare_trajectories(panel.filter(pl.col("reporting_month") < pl.date(2020, 5, 1)), loans, macro),
            panel.filter(pl.col("reporting_month") < pl.date(2020, 5, 1)),
            loans,
            macro_paths(macro),
            10,
        )


def test_calibration_brings_rates_correlations_and_severities_closer() -> None:
    loans, panel, macro = tables()
    vae, transitions, trajectory = models()
    before = calibrate(*models(), loans, panel, macro).table
    with torch.no_grad():
        transitions.base[:, 0, LoanState.dpd30] += 0.7  # twice the misses
        transitions.base[:, 3, LoanState.default] += 2.0
        vae.log_diagonal_M += 0.2
    found = calibrate(vae, transitions, trajectory, loans, panel, macro)
    gaps = found.table.with_columns(
        (pl.col("before") - pl.col("observed")).abs().alias("b"),
        (pl.col("after") - pl.col("observed")).abs().alias("a"),
    )
    total = gaps.filter(pl.col("measure") == "defaults").select("a", "b").sum()
    assert total["a"].item() < total["b"].item()
    assert found.is_kept["default_rates"]
    right, loss = (table.filter(pl.col("measure") == "log_loss") for table in (before, found.table))
    lost = loss["before"].item() - right["before"].item()
    assert lost > 0.005
    assert loss["after"].item() < right["before"].item() + 0.25 * lost


def test_a_gap_within_chance_moves_nothing() -> None:
    """Two paths with 20 and 10 moves where 15 were expected: luck. 300 where 150 were: not."""

    def share(observed: list[float], expected: list[float]) -> float:
        shape = (len(observed), 4, 4, 7)
        moves = _Moves(
            months=torch.ones(4),
            log_loss=0.0,
            by_cohort=[],
            observed_by_group=torch.tensor(observed).double()[:, None, None, None].expand(shape),
            expected_by_group=torch.tensor(expected).double()[:, None, None, None].expand(shape),
        )
        return float(_beyond_chance(moves)[0, 0, 0])

    assert share([20.0, 14.0], [15.0, 15.0]) == 0.0
    assert share([300.0, 290.0], [150.0, 150.0]) > 0.9


def test_a_step_too_far_is_halved_until_the_guard_allows_it() -> None:
    loans, panel, macro = tables()
    run = trainer(lr=3e-3)
    start = {name: value.clone() for name, value in run.models.state_dict().items()}
    history = run.fit(loans, panel, target_loss_rate=None, epochs=1, macro_data=macro)
    assert history["step"] in (0.0, *SHORTER)
    assert history["is_changed"] == (history["step"] > 0)
    for name in ("macro_loss", "transition_loss", "trajectory_loss"):
        assert history["after"][name] <= run.allowed(name, history["before"], history["class_rows_loss"])
    if not history["is_changed"]:
        assert all(torch.equal(value, start[name]) for name, value in run.models.state_dict().items())


def test_the_guard_is_one_per_cent_of_the_loss_and_of_the_gain_on_mean_rows() -> None:
    allowed = EndToEndTrainer.allowed
    before = {"transition_loss": 0.18, "macro_loss": -0.5}
    assert allowed("transition_loss", before, {"transition_loss": 0.19}) == pytest.approx(0.1801)
    assert allowed("transition_loss", before, {"transition_loss": 2.0}) == pytest.approx(0.1818)
    assert allowed("macro_loss", before, {}) == pytest.approx(-0.495)


def test_fine_tuning_twice_gives_the_same_numbers() -> None:
    loans, panel, macro = tables()
    first, second = (
        trainer(steps_per_epoch=1).fit(loans, panel, epochs=1, macro_data=macro) for _ in range(2)
    )
    assert first["loss"] == second["loss"]
    assert first["after"] == second["after"]


def test_a_history_without_a_loss_leaves_the_models_as_they_are_and_says_so() -> None:
    """A young pool: nobody was ever late. Nothing to match is no reason to stop, nor to learn nonsense."""
    loans, panel, macro = tables()
    late = panel.filter(pl.col("loan_state").is_between(LoanState.dpd30, LoanState.default))
    never = ~pl.col("loan_id").is_in(late["loan_id"].unique().to_list())
    calm_loans, calm = loans.filter(never), panel.filter(never)
    fitted = trainer()
    before = {name: value.clone() for name, value in fitted.models.state_dict().items()}
    history = fitted.fit(calm_loans, calm, None, epochs=1, macro_data=macro)
    assert not history["is_changed"]
    assert history["fallback"] == "components"
    assert "lost anything" in history["notes"][-1]
    assert np.isfinite(list(history["before"].values())).all()
    for name, value in fitted.models.state_dict().items():
        assert torch.equal(value, before[name])
    # A loss rate that is asked for can still be matched.
    assert trainer().fit(calm_loans, calm, 0.01, epochs=1, macro_data=macro)["loss_rate_target"] == 0.01
