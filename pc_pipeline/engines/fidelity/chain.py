"""The chain trained once for the sections that need its models: tables and models of one recipe.

Here: `trained_chain`. Not here: the stages it calls (`engines.stages`), what is measured on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pc_pipeline.core.store import Store
from pc_pipeline.engines.aggregator import PortfolioAggregator
from pc_pipeline.engines.fidelity.run import code_digest
from pc_pipeline.engines.fidelity.table import Request, SizedRecipe
from pc_pipeline.engines.stages import data as tables
from pc_pipeline.engines.stages.learning import (
    LearningTables,
    Models,
    fine_tune,
    train_loan_trajectory,
    train_macro_vae,
    train_transition_transformer,
)
from pc_pipeline.engines.stages.scoring import ScoringSet
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.schemas.units import STANDARD_SCENARIOS


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """What a trained chain consists of.

    Attributes:
        macro, tape, panel, pool: tables of the generated pool.
        components: the three networks before joint fine-tuning. models: after it, with 'loan_residual'.
        test: fresh loans of the same world on fresh macro paths. recipe: that made it.
    """

    macro: pl.DataFrame
    tape: pl.DataFrame
    panel: pl.DataFrame
    pool: pl.DataFrame
    components: Models
    models: Models
    test: ScoringSet
    recipe: SizedRecipe


def trained_chain(request: Request) -> Chain:
    """The chain of the request's first recipe, trained or read from where an earlier section left it."""
    recipe = request.recipe
    folder = (request.shared or request.scratch) / _digest(recipe)
    store = Store(folder)
    macro = pl.concat(
        [tables.macro_paths(store, recipe.macro_paths, name).frame for name in STANDARD_SCENARIOS]
    )
    tape = tables.loan_tape(store, recipe.tape)
    panel = pl.concat(
        [
            tables.loan_panel(store, recipe.tape, name, tape, macro.filter(pl.col("scenario") == name)).panel
            for name in STANDARD_SCENARIOS
        ]
    )
    pool = tables.pool(store, tape)
    test = tables.scoring_set(store, recipe.tape, recipe.macro_paths, panel, tape, macro)
    components = _kept(folder / "components", lambda: _components(recipe, macro, tape, panel, request.device))
    models = _kept(
        folder / "joint",
        lambda: (
            fine_tune(
                recipe.joint,
                _read(folder / "components"),  # copies: fine-tuning works in place
                LearningTables(panel=panel, loans=tape, macro=macro, pool=pool),
                PortfolioAggregator().deal,
                test,
                request.device,
            ).models
        ),
    )
    return Chain(
        macro=macro,
        tape=tape,
        panel=panel,
        pool=pool,
        components=components,
        models=models,
        test=test,
        recipe=recipe,
    )


def _components(
    recipe: SizedRecipe, macro: pl.DataFrame, tape: pl.DataFrame, panel: pl.DataFrame, device: str
) -> Models:
    models = dict(train_macro_vae(recipe.macro_vae, macro, device).models)
    counts = tables.transitions(panel, tape)
    models |= train_transition_transformer(recipe.transition_transformer, counts, tape, macro, device).models
    return models | train_loan_trajectory(recipe.loan_trajectory, panel, tape, macro, models, device).models


def _kept(folder: Path, make: Any) -> Models:
    """Models in a folder, made where it is not whole."""
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for name, (model, card) in make().items():
            save_model(folder / name, model, card)
        done.touch()
    return _read(folder)


def _read(folder: Path) -> Models:
    return {path.name: load_model(path) for path in sorted(folder.iterdir()) if path.is_dir()}


def _digest(recipe: SizedRecipe) -> str:
    said = asdict(recipe) if is_dataclass(recipe) else str(recipe)  # type: ignore[arg-type]
    text = code_digest() + json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
