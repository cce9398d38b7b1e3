"""The chain's stages as plain functions: tables in, tables or models out; no Dagster here.

    data        landing, macro paths, tape, panel, transitions, pool
    learning    component models, baseline, joint model
    results     simulation, tranche report, committee report
    identities  what must hold between stored tables

`orchestration` calls one of these per asset; a notebook can call them in the same order.
"""

from pc_pipeline.engines.stages.data import (
    MacroPathsConfig,
    TapeConfig,
    custom_scenarios,
    forget_landing,
    keep_scenarios,
    land,
    landed_files,
    loan_panel,
    loan_tape,
    macro_fan,
    macro_paths,
    pool,
    quarantine_reasons,
    state_profile,
    tape_profile,
    transition_matrix,
    transitions,
)
from pc_pipeline.engines.stages.identities import (
    expected_losses,
    is_ordered,
    panel_breaches,
    seniority_breaches,
    simulation_breaches,
)
from pc_pipeline.engines.stages.learning import (
    JointStage,
    LearningTables,
    LoanTrajectoryStage,
    MacroVAEStage,
    Trained,
    TransitionStage,
    beats_markov,
    fine_tune,
    fit_markov_baseline,
    has_trained_models,
    model_scores,
    train_loan_trajectory,
    train_macro_vae,
    train_transition_transformer,
)
from pc_pipeline.engines.stages.results import (
    HTML_REPORT,
    SimulationStage,
    check_deal,
    committee_report,
    find_deal,
    loss_frame,
    report,
    simulate,
)

__all__ = [
    "HTML_REPORT",
    "JointStage",
    "LearningTables",
    "LoanTrajectoryStage",
    "MacroPathsConfig",
    "MacroVAEStage",
    "SimulationStage",
    "TapeConfig",
    "Trained",
    "TransitionStage",
    "beats_markov",
    "check_deal",
    "committee_report",
    "custom_scenarios",
    "expected_losses",
    "find_deal",
    "fine_tune",
    "fit_markov_baseline",
    "forget_landing",
    "has_trained_models",
    "is_ordered",
    "keep_scenarios",
    "land",
    "landed_files",
    "loan_panel",
    "loan_tape",
    "loss_frame",
    "macro_fan",
    "macro_paths",
    "model_scores",
    "panel_breaches",
    "pool",
    "quarantine_reasons",
    "report",
    "seniority_breaches",
    "simulate",
    "simulation_breaches",
    "state_profile",
    "tape_profile",
    "train_loan_trajectory",
    "train_macro_vae",
    "train_transition_transformer",
    "transition_matrix",
    "transitions",
]
