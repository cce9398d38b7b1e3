"""Every recipe is complete, grows with its name, and derives all its seeds from one."""

from __future__ import annotations

import json

import pytest
import torch

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.engines.stages.learning import enough_steps, network_for_few_loans
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.models.transition_transformer import TransitionTransformer
from pc_pipeline.recipes import RECIPES, describe_recipe, get_recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_builds_its_networks_and_describes_itself(name: str) -> None:
    recipe = get_recipe(name)
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in network.parameters())
            for network in (
                TransitionTransformer(recipe.transition_transformer.network),
                LoanTrajectoryModel(recipe.loan_trajectory.network),
            )
        ]
    assert min(sizes) > 0
    assert MacroVAE(recipe.macro_vae.network).config == recipe.macro_vae.network
    assert recipe.tape.n_paths <= recipe.macro_paths.n_paths
    assert recipe.tape.n_months == recipe.macro_paths.n_months
    assert json.loads(json.dumps(describe_recipe(recipe)))["name"] == name


def test_recipes_grow_with_their_names() -> None:
    made = [get_recipe(name) for name in ("tiny", "base", "full", "paper")]
    for of in (lambda r: r.tape.n_loans, lambda r: r.simulation.n_paths, lambda r: r.macro_paths.n_paths):
        sizes = [of(recipe) for recipe in made]
        assert sizes == sorted(sizes)


def test_another_seed_changes_every_stage() -> None:
    one, two = get_recipe("base", seed=1), get_recipe("base", seed=2)
    for stage in ("tape", "macro_paths", "joint", "simulation"):
        assert getattr(one, stage).seed != getattr(two, stage).seed
    for stage in ("macro_vae", "transition_transformer", "loan_trajectory", "joint"):
        assert getattr(one, stage).training.seed != getattr(two, stage).training.seed
    assert one == get_recipe("base", seed=1)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tiny, base, full, paper"):
        get_recipe("huge")


@pytest.mark.parametrize("name", ["tiny", "base", "full", "paper"])
def test_a_few_thousand_real_loans_get_more_networks_not_wider_ones(name: str) -> None:
    """A larger recipe must not learn a small real panel worse: width and rate stop at base."""
    stage, base_stage = get_recipe(name).loan_trajectory, get_recipe("base").loan_trajectory
    network = network_for_few_loans(stage.network, stage.real_members)
    assert network.reads_payments
    assert network.idio_scale == 1.0
    assert network.d_model <= base_stage.network.d_model
    assert (network.n_members > 1) == (name != "tiny")
    training = enough_steps(stage.training, n_histories=3000)
    assert training.lr <= base_stage.training.lr
    assert training.batch_size <= base_stage.training.batch_size
