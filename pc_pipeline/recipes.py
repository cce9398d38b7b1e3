"""Recipes: complete frozen configurations named for their size, each one tested.

tiny    seconds; every stage at its smallest, for tests
base    the default: a few minutes on two cores
full    best results on a CPU, up to half an hour
paper   the sizes that the methods were stated at, for a GPU
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.stages import (
    JointStage,
    LoanTrajectoryStage,
    MacroPathsConfig,
    MacroVAEStage,
    PaymentCascadeStage,
    SimulationStage,
    TapeConfig,
    TransitionStage,
)
from pc_pipeline.models.loan_trajectory import TrajectoryConfig
from pc_pipeline.models.macro_vae import MacroVAEConfig
from pc_pipeline.models.transition_transformer import TransitionConfig
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.joint import JointConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run, but for the data and the deal.

    Attributes:
        name: of the recipe.
        seed: master seed; every stage derives its own from it.
        tape: the generated pool (a real tape takes its place).
        macro_paths: paths per scenario.
        macro_vae, transition_transformer, loan_trajectory, payment_cascade, joint: sizes and training.
        simulation: Monte Carlo.
    """

    name: str
    seed: int
    tape: TapeConfig
    macro_paths: MacroPathsConfig
    macro_vae: MacroVAEStage
    transition_transformer: TransitionStage
    loan_trajectory: LoanTrajectoryStage
    payment_cascade: PaymentCascadeStage
    joint: JointStage
    simulation: SimulationStage


def tiny(seed: int = 42) -> Recipe:
    """Every stage at its smallest."""
    return _recipe(
        "tiny",
        seed,
        tape=TapeConfig(n_loans=300, n_months=36, n_vintages=6, n_paths=8),
        macro_paths=MacroPathsConfig(n_paths=8, n_months=36),
        macro_vae=MacroVAEStage(
            network=MacroVAEConfig(latent_dim=4, hidden_dim=16, n_layers=1, decoder_dim=8, seq_length=36),
            training=TrainConfig(epochs=4, batch_size=16, lr=2e-3, patience=4),
        ),
        transition_transformer=TransitionStage(
            network=TransitionConfig(d_model=8, n_heads=2, n_layers=1),
            training=TrainConfig(epochs=2, batch_size=64, lr=2e-3, patience=2),
        ),
        loan_trajectory=LoanTrajectoryStage(
            network=TrajectoryConfig(d_model=8, n_heads=2, n_layers=1, diffusion_steps=10),
            training=TrainConfig(epochs=2, batch_size=128, lr=2e-3, patience=2),
        ),
        payment_cascade=PaymentCascadeStage(
            hidden_dim=16,
            num_layers=1,
            training=TrainConfig(epochs=1, batch_size=256, lr=3e-3),
            max_histories=1200,
            most_validated=300,
        ),
        joint=JointStage(
            training=TrainConfig(epochs=1, lr=1e-4, patience=1000),
            sizes=JointConfig(
                n_lines=16, n_paths=2, steps_per_epoch=1, loans_per_step=64, cohorts_per_step=32
            ),
            compile_loans=64,
            compile_steps=40,
        ),
        simulation=SimulationStage(n_paths=200, n_months=36),
    )


def base(seed: int = 42) -> Recipe:
    """The default."""
    return _recipe(
        "base",
        seed,
        tape=TapeConfig(n_loans=5000, n_months=60, n_vintages=12),
        macro_paths=MacroPathsConfig(n_paths=2000, n_months=60),
        macro_vae=MacroVAEStage(
            network=MacroVAEConfig(latent_dim=16, hidden_dim=32, n_layers=1),
            training=TrainConfig(epochs=2, batch_size=256, lr=1e-3, patience=2),
        ),
        transition_transformer=TransitionStage(
            network=TransitionConfig(d_model=32, n_heads=2, n_layers=2),
            training=TrainConfig(epochs=4, batch_size=128, lr=2e-3, patience=4),
        ),
        loan_trajectory=LoanTrajectoryStage(
            network=TrajectoryConfig(d_model=32, n_heads=2, n_layers=2, diffusion_steps=50),
            training=TrainConfig(epochs=7, batch_size=256, lr=2e-3, patience=4),
            real_members=3,
        ),
        payment_cascade=PaymentCascadeStage(
            hidden_dim=32, training=TrainConfig(epochs=4, batch_size=256, lr=4e-3), max_histories=20_000
        ),
        joint=JointStage(training=TrainConfig(epochs=3, lr=1e-4, patience=1000)),
        simulation=SimulationStage(n_paths=2000, n_months=60),
    )


def full(seed: int = 42) -> Recipe:
    """Best results on a CPU."""
    return _recipe(
        "full",
        seed,
        tape=TapeConfig(n_loans=20000, n_months=60, n_vintages=24, n_paths=64),
        macro_paths=MacroPathsConfig(n_paths=2000, n_months=60),
        macro_vae=MacroVAEStage(
            network=MacroVAEConfig(latent_dim=32, hidden_dim=64, n_layers=1),
            training=TrainConfig(epochs=40, batch_size=128, lr=1e-3, patience=10),
        ),
        transition_transformer=TransitionStage(
            network=TransitionConfig(d_model=48, n_heads=4, n_layers=2),
            training=TrainConfig(epochs=6, batch_size=128, lr=2e-3, patience=4),
        ),
        loan_trajectory=LoanTrajectoryStage(
            network=TrajectoryConfig(d_model=48, n_heads=4, n_layers=2),
            training=TrainConfig(epochs=8, batch_size=256, lr=3e-3, patience=5),
            real_members=5,
        ),
        payment_cascade=PaymentCascadeStage(
            training=TrainConfig(epochs=12, batch_size=512, lr=4e-3), max_histories=60_000
        ),
        joint=JointStage(training=TrainConfig(epochs=20, lr=1e-4, patience=1000), compile_loans=1024),
        simulation=SimulationStage(n_paths=10000, n_months=60),
    )


def paper(seed: int = 42) -> Recipe:
    """The stated sizes: 50,000 loans, 200/100/50/20 epochs, widths 128/128/256, 10,000 paths."""
    return _recipe(
        "paper",
        seed,
        tape=TapeConfig(n_loans=50000, n_months=60, n_vintages=24),
        macro_paths=MacroPathsConfig(n_paths=2000, n_months=60),
        macro_vae=MacroVAEStage(
            network=MacroVAEConfig(), training=TrainConfig(epochs=200, batch_size=32, lr=1e-3, patience=40)
        ),
        transition_transformer=TransitionStage(
            network=TransitionConfig(),
            training=TrainConfig(epochs=100, batch_size=64, lr=1e-4, patience=20, precision="bfloat16"),
        ),
        loan_trajectory=LoanTrajectoryStage(
            network=TrajectoryConfig(),
            training=TrainConfig(epochs=50, batch_size=256, lr=1e-4, patience=10, precision="bfloat16"),
            real_members=5,
        ),
        payment_cascade=PaymentCascadeStage(training=TrainConfig(epochs=50, batch_size=512, lr=3e-3)),
        joint=JointStage(training=TrainConfig(epochs=20, lr=1e-5, patience=1000), compile_loans=1024),
        simulation=SimulationStage(n_paths=10000, n_months=60),
    )


RECIPES: dict[str, Callable[..., Recipe]] = {"tiny": tiny, "base": base, "full": full, "paper": paper}


def get_recipe(name: str, seed: int = 42) -> Recipe:
    """A recipe by name, under a master seed.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError("unknown recipe", expected=", ".join(RECIPES), got=name, where="RECIPE")
    return RECIPES[name](seed)


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values."""
    return dataclasses.asdict(recipe)


def _recipe(name: str, seed: int, **stages: Any) -> Recipe:
    """The recipe with every stage's seed derived from the master seed."""

    def seeded(stage: str, config: Any) -> Any:
        changes: dict[str, Any] = {}
        if hasattr(config, "seed"):
            changes["seed"] = derive_seed(seed, stage) % 2**31
        if hasattr(config, "training"):
            changes["training"] = seeded(f"{stage}.training", config.training)
        return dataclasses.replace(config, **changes)

    return Recipe(name=name, seed=seed, **{key: seeded(key, value) for key, value in stages.items()})
