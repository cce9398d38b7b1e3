"""A reader of the tutorials changes the import line: the public names, used in the tutorials' order."""

from __future__ import annotations

import numpy as np
import torch

from pc_pipeline import (
    EndToEndTrainer,
    LoanTapeGenerator,
    LoanTrajectoryModel,
    MacroScenarioGenerator,
    MacroVAE,
    MacroVAEConfig,
    MacroVAETrainer,
    MarkovTransitionModel,
    PortfolioAggregator,
    SimulationResults,
    TrajectoryConfig,
    TrajectoryTrainer,
    TransitionConfig,
    TransitionTrainer,
    TransitionTransformer,
    WaterfallConfig,
    extract_transitions,
    prepare_trajectories,
)
from pc_pipeline.schemas.units import COHORT_FEATURES, MACRO_NAMES

MONTHS = 18
TRANCHES = [
    {"name": "Senior", "size": 0.70, "coupon": 0.05},
    {"name": "Mezz", "size": 0.15, "coupon": 0.08},
    {"name": "Junior", "size": 0.10, "coupon": 0.12},
    {"name": "Equity", "size": 0.05, "coupon": None},
]


def test_the_tutorial_from_generators_to_results() -> None:
    loan_gen = LoanTapeGenerator(n_loans=120, n_months=MONTHS, n_vintages=3, random_seed=42)
    macro_gen = MacroScenarioGenerator(n_months=MONTHS)
    scenarios = {name: macro_gen.generate_scenario(name) for name in ("baseline", "adverse", "severe")}
    loans_df, panel_df = loan_gen.generate(macro_df=scenarios["baseline"])

    vae = MacroVAE(MacroVAEConfig(seq_length=MONTHS, latent_dim=4, hidden_dim=8, n_layers=1, decoder_dim=4))
    paths = [df.select(MACRO_NAMES).to_numpy() for df in scenarios.values()]
    macro_tensor = torch.tensor(np.stack(paths), dtype=torch.float32)
    history = MacroVAETrainer(vae, lr=1e-3).fit(
        macro_data=macro_tensor, scenario_labels=torch.tensor([0, 1, 2]), epochs=2, batch_size=32
    )
    assert np.isfinite(history["loss"][-1])
    reconstruction, mu, log_var = vae(macro_tensor, torch.tensor([0, 1, 2]))
    assert reconstruction.shape == (3, MONTHS, 9)
    assert mu.shape == log_var.shape == (3, 4)
    assert vae.generate(scenario=0, seq_length=MONTHS, n_samples=5).shape == (5, MONTHS, 9)

    counts = extract_transitions(panel_df)
    assert counts.shape[1:] == (7, 7)
    cohort_df = panel_df.to_pandas().groupby(["vintage_month", "asset_class"]).agg(
        {"original_balance": "sum", "loan_id": "count"}
    ).reset_index()  # fmt: skip
    transition = TransitionTransformer(TransitionConfig(d_model=8, n_heads=2, n_layers=1))
    history = TransitionTrainer(transition, lr=1e-3).fit(
        cohort_data=cohort_df, transitions=counts, macro_data=scenarios["baseline"], epochs=1
    )
    assert np.isfinite(history["loss"][-1])
    rows = transition(torch.zeros(2, len(COHORT_FEATURES)), macro_tensor[:2])
    assert rows.shape == (2, MONTHS, 7, 7)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, MONTHS, 7), atol=1e-6, rtol=0)

    trajectories = prepare_trajectories(panel_df, loans_df)
    loan_model = LoanTrajectoryModel(TrajectoryConfig(d_model=8, n_heads=2, n_layers=1, diffusion_steps=5))
    history = TrajectoryTrainer(loan_model, lr=1e-3).fit(
        loan_features=loans_df, trajectories=trajectories, epochs=1, batch_size=64
    )
    assert np.isfinite(history["loss"][-1])

    aggregator = PortfolioAggregator(WaterfallConfig(tranches=TRANCHES))
    history = EndToEndTrainer(
        macro_vae=vae,
        transition_model=transition,
        trajectory_model=loan_model,
        aggregator=aggregator,
        lr=1e-5,
    ).fit(loans_df=loans_df, panel_df=panel_df, target_loss_rate=0.02, epochs=1)
    assert set(history["before"]) == set(history["after"])

    results = aggregator.monte_carlo_simulate(
        loans_df, vae, transition, loan_model, n_simulations=40,
        scenario_mix={"baseline": 0.5, "adverse": 0.25, "severe": 0.25}, n_months=MONTHS,
    )  # fmt: skip
    assert isinstance(results, SimulationResults)
    assert 0 <= results.expected_loss <= results.var_99 <= results.cvar_99 <= 1
    assert [tranche.name for tranche in results.tranche_results] == ["Senior", "Mezz", "Junior", "Equity"]
    assert results.summary().height > 4


def test_the_baseline_chain() -> None:
    loan_gen = LoanTapeGenerator(n_loans=200, n_months=12, n_vintages=2, random_seed=1)
    _, panel_df = loan_gen.generate(MacroScenarioGenerator(n_months=12).generate_scenario("baseline"))
    chain = MarkovTransitionModel(n_states=7)
    chain.fit(panel_df.to_pandas())
    states = chain.simulate(np.zeros(50, dtype=int), n_steps=6)
    assert states.shape == (50, 6)
    assert set(np.unique(states)) <= set(range(7))
