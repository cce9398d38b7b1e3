"""The chain's stages as plain functions: tables in, tables or models out; no Dagster here.

    delivery    from delivered files to the store's pool
    freshness   whether the models learned from what is landed now
    data        macro paths, tape, panel, transitions, pool
    learning    component models, baseline, joint model
    results     simulation, tranche report, committee report
    identities  what must hold between stored tables

`orchestration` calls one of these per asset; a notebook can call them in the same order. Names load on first
use: taking in a delivery needs no network, and does not wait for one to be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pc_pipeline.engines.stages.cascade import (
        PaymentCascadeStage,
        cascade_answers,
        cascade_validation,
        train_payment_cascade,
    )
    from pc_pipeline.engines.stages.data import (
        MacroPathsConfig,
        TapeConfig,
        custom_scenarios,
        find_scenario,
        has_real_history,
        keep_scenarios,
        loan_panel,
        loan_tape,
        macro_fan,
        macro_paths,
        pool,
        scoring_set,
        state_profile,
        tape_profile,
        transition_matrix,
        transitions,
        with_current_scenarios,
    )
    from pc_pipeline.engines.stages.delivery import (
        TakenIn,
        as_known,
        find_history,
        forget_landing,
        land,
        land_known,
        landed_files,
        pool_name,
        quarantine_reasons,
        take_in,
    )
    from pc_pipeline.engines.stages.freshness import (
        LEARNED_FROM,
        learned_from,
        panel_notes,
        stale_models,
    )
    from pc_pipeline.engines.stages.identities import (
        expected_losses,
        is_ordered,
        panel_breaches,
        seniority_breaches,
        simulation_breaches,
    )
    from pc_pipeline.engines.stages.landing import read_landing
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
        WORKBOOK,
        SimulationStage,
        check_deal,
        committee_report,
        find_deal,
        loss_frame,
        quality_summary,
        report,
        report_frames,
        simulate,
    )

_HOME: dict[str, tuple[str, ...]] = {
    "cascade": ("PaymentCascadeStage", "cascade_answers", "cascade_validation", "train_payment_cascade"),
    "data": (
        "MacroPathsConfig",
        "TapeConfig",
        "custom_scenarios",
        "find_scenario",
        "has_real_history",
        "keep_scenarios",
        "loan_panel",
        "loan_tape",
        "macro_fan",
        "macro_paths",
        "pool",
        "scoring_set",
        "state_profile",
        "tape_profile",
        "transition_matrix",
        "transitions",
        "with_current_scenarios",
    ),
    "delivery": (
        "TakenIn",
        "as_known",
        "find_history",
        "forget_landing",
        "land",
        "land_known",
        "landed_files",
        "pool_name",
        "quarantine_reasons",
        "take_in",
    ),
    "freshness": ("LEARNED_FROM", "learned_from", "panel_notes", "stale_models"),
    "identities": (
        "expected_losses",
        "is_ordered",
        "panel_breaches",
        "seniority_breaches",
        "simulation_breaches",
    ),
    "landing": ("read_landing",),
    "learning": (
        "JointStage",
        "LearningTables",
        "LoanTrajectoryStage",
        "MacroVAEStage",
        "Trained",
        "TransitionStage",
        "beats_markov",
        "fine_tune",
        "fit_markov_baseline",
        "has_trained_models",
        "model_scores",
        "train_loan_trajectory",
        "train_macro_vae",
        "train_transition_transformer",
    ),
    "results": (
        "HTML_REPORT",
        "WORKBOOK",
        "SimulationStage",
        "check_deal",
        "committee_report",
        "find_deal",
        "loss_frame",
        "quality_summary",
        "report",
        "report_frames",
        "simulate",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


__all__ = [
    "HTML_REPORT",
    "LEARNED_FROM",
    "WORKBOOK",
    "JointStage",
    "LearningTables",
    "LoanTrajectoryStage",
    "MacroPathsConfig",
    "MacroVAEStage",
    "PaymentCascadeStage",
    "SimulationStage",
    "TakenIn",
    "TapeConfig",
    "Trained",
    "TransitionStage",
    "as_known",
    "beats_markov",
    "cascade_answers",
    "cascade_validation",
    "check_deal",
    "committee_report",
    "custom_scenarios",
    "expected_losses",
    "find_deal",
    "find_history",
    "find_scenario",
    "fine_tune",
    "fit_markov_baseline",
    "forget_landing",
    "has_real_history",
    "has_trained_models",
    "is_ordered",
    "keep_scenarios",
    "land",
    "land_known",
    "landed_files",
    "learned_from",
    "loan_panel",
    "loan_tape",
    "loss_frame",
    "macro_fan",
    "macro_paths",
    "model_scores",
    "panel_breaches",
    "panel_notes",
    "pool",
    "pool_name",
    "quality_summary",
    "quarantine_reasons",
    "read_landing",
    "report",
    "report_frames",
    "scoring_set",
    "seniority_breaches",
    "simulate",
    "simulation_breaches",
    "stale_models",
    "state_profile",
    "take_in",
    "tape_profile",
    "train_loan_trajectory",
    "train_macro_vae",
    "train_payment_cascade",
    "train_transition_transformer",
    "transition_matrix",
    "transitions",
    "with_current_scenarios",
]
