"""pc_pipeline: from a loan tape to a tranche report. The one public face; names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_EXPORTS: dict[str, str] = {
    "Deal": "pc_pipeline.waterfall.deal",
    "EndToEndTrainer": "pc_pipeline.training.joint",
    "LSTMCascadeGenerator": "pc_pipeline.engines.payment_cascade",
    "LSTMCascadeModel": "pc_pipeline.models.payment_cascade",
    "LoanTapeGenerator": "pc_pipeline.loans.tape_generator",
    "LoanTrajectoryModel": "pc_pipeline.models.loan_trajectory",
    "MacroScenarioGenerator": "pc_pipeline.scenarios.generator",
    "MacroVAE": "pc_pipeline.models.macro_vae",
    "MacroVAEConfig": "pc_pipeline.models.macro_vae",
    "MacroVAETrainer": "pc_pipeline.training.macro_vae",
    "MarkovTransitionModel": "pc_pipeline.models.markov",
    "PcError": "pc_pipeline.core.errors",
    "PortfolioAggregator": "pc_pipeline.engines.aggregator",
    "ScenarioDefinition": "pc_pipeline.scenarios.definitions",
    "SimulationResults": "pc_pipeline.engines.results",
    "Store": "pc_pipeline.core.store",
    "Study": "pc_pipeline.engines.analysis.study",
    "TrainConfig": "pc_pipeline.training.config",
    "TrajectoryConfig": "pc_pipeline.models.loan_trajectory",
    "TrajectoryTrainer": "pc_pipeline.training.trajectories",
    "TrancheResult": "pc_pipeline.engines.results",
    "TransitionConfig": "pc_pipeline.models.transition_transformer",
    "TransitionTrainer": "pc_pipeline.training.transitions",
    "TransitionTransformer": "pc_pipeline.models.transition_transformer",
    "WaterfallConfig": "pc_pipeline.waterfall.config",
    "calibrate": "pc_pipeline.scenarios.calibration",
    "extract_transitions": "pc_pipeline.loans.transitions",
    "load_deal": "pc_pipeline.waterfall.deal",
    "load_history": "pc_pipeline.scenarios.history",
    "load_model": "pc_pipeline.models.checkpoint",
    "load_scenarios": "pc_pipeline.scenarios.definitions",
    "pool_snapshot": "pc_pipeline.loans.pool",
    "prepare_trajectories": "pc_pipeline.loans.trajectories",
    "read_tape": "pc_pipeline.loans.ingest",
    "run_waterfall": "pc_pipeline.waterfall.engine",
    "save_model": "pc_pipeline.models.checkpoint",
    "validate_sequences": "pc_pipeline.evaluation.sequences",
    "true_transition_probabilities": "pc_pipeline.loans.truth",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pc_pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*_EXPORTS, "__version__"])
