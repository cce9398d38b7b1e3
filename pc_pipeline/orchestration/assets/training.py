"""Component models, the jointly fine-tuned model and its compiled form; trained over all scenarios."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from pc_pipeline.engines import stages
from pc_pipeline.orchestration.assets.common import HEAVY_TAGS, OWNERS, as_markdown, plot_metadata
from pc_pipeline.orchestration.resources import ComputeResource, SettingsResource, StoreResource
from pc_pipeline.reports import model_plots
from pc_pipeline.training.watch import keep_training

Models = dict[str, tuple[Any, dict[str, Any]]]
TRAINING: Any = {
    "group_name": "training",
    "owners": OWNERS,
    "io_manager_key": "models",
    "pool": "gpu",
    "op_tags": HEAVY_TAGS,
}


def _kept(store: StoreResource) -> AbstractContextManager[Path]:
    """Curves for TensorBoard, and the file from which a killed run goes on."""
    return keep_training(store.store.root / "training")


def _output(trained: stages.Trained) -> dg.Output[Models]:
    metadata: dict[str, Any] = {"scores": as_markdown(trained.scores)}
    if trained.history:
        curve = model_plots.training_curves(trained.history)
        metadata |= {
            "curve": plot_metadata(curve, "training curve"),
            "epochs": as_markdown(trained.epochs),
            **trained.final_losses,
        }
    return dg.Output(trained.models, metadata=metadata)


@dg.asset(kinds={"pytorch"}, description="Conditional variational autoencoder of macro paths.", **TRAINING)
def macro_vae(
    macro_scenarios: pl.DataFrame,
    store: StoreResource,
    settings: SettingsResource,
    compute: ComputeResource,
) -> dg.Output[Models]:
    recipe = settings.load()
    paths = stages.with_current_scenarios(store.store, recipe.macro_paths, macro_scenarios, settings.macro)
    with _kept(store):
        return _output(stages.train_macro_vae(recipe.macro_vae, paths, compute.resolve()))


@dg.asset(
    kinds={"pytorch"}, description="Monthly transition rows by cohort given the macro path.", **TRAINING
)
def transition_transformer(
    transitions: pl.DataFrame,
    loan_tape: pl.DataFrame,
    macro_scenarios: pl.DataFrame,
    store: StoreResource,
    settings: SettingsResource,
    compute: ComputeResource,
) -> dg.Output[Models]:
    stage = settings.load().transition_transformer
    with _kept(store):
        return _output(
            stages.train_transition_transformer(
                stage, transitions, loan_tape, macro_scenarios, compute.resolve()
            )
        )


@dg.asset(
    kinds={"pytorch"},
    description="Each loan's own path: residual on the cohort row, diffusion head.",
    **TRAINING,
)
def loan_trajectory(
    loan_panel: pl.DataFrame,
    loan_tape: pl.DataFrame,
    macro_scenarios: pl.DataFrame,
    transition_transformer: Models,
    store: StoreResource,
    settings: SettingsResource,
    compute: ComputeResource,
) -> dg.Output[Models]:
    stage, device = settings.load().loan_trajectory, compute.resolve()
    with _kept(store):
        return _output(
            stages.train_loan_trajectory(
                stage, loan_panel, loan_tape, macro_scenarios, transition_transformer, device
            )
        )


@dg.asset(
    kinds={"pytorch"},
    description="LSTM over payment statuses: generates histories, challenges the loan model; its page of "
    "validation lies among the reports.",
    **TRAINING,
)
def payment_cascade(
    loan_panel: pl.DataFrame,
    loan_tape: pl.DataFrame,
    macro_scenarios: pl.DataFrame,
    store: StoreResource,
    settings: SettingsResource,
) -> dg.Output[Models]:
    return _output(
        stages.train_payment_cascade(
            settings.load().payment_cascade, store.store, loan_panel, loan_tape, macro_scenarios
        )
    )


@dg.asset(kinds={"numpy"}, description="The lookup table that every model must beat.", **TRAINING)
def markov_baseline(loan_panel: pl.DataFrame, loan_tape: pl.DataFrame) -> dg.Output[Models]:
    return _output(stages.fit_markov_baseline(loan_panel, loan_tape))


@dg.asset(
    kinds={"pytorch"},
    description="The three networks fine-tuned together through expected cash flows and the soft waterfall, "
    "then calibrated; scored against the Markov baseline on held-out loans.",
    **TRAINING,
)
def joint_model(
    macro_vae: Models,
    transition_transformer: Models,
    loan_trajectory: Models,
    markov_baseline: Models,
    payment_cascade: Models,
    loan_panel: pl.DataFrame,
    loan_tape: pl.DataFrame,
    macro_scenarios: pl.DataFrame,
    pool: pl.DataFrame,
    store: StoreResource,
    settings: SettingsResource,
    compute: ComputeResource,
) -> dg.Output[Models]:
    models = {**macro_vae, **transition_transformer, **loan_trajectory, **markov_baseline}
    recipe = settings.load()
    test = stages.scoring_set(
        store.store, recipe.tape, recipe.macro_paths, loan_panel, loan_tape, macro_scenarios
    )
    paths = stages.with_current_scenarios(store.store, recipe.macro_paths, macro_scenarios, settings.macro)
    tables = stages.LearningTables(panel=loan_panel, loans=loan_tape, macro=paths, pool=pool)
    deal = stages.find_deal(settings.deal, settings.deals_dir, pool)
    rivals = {"payment_cascade": stages.cascade_answers(payment_cascade, loan_tape)}
    with _kept(store):
        return _output(stages.fine_tune(recipe.joint, models, tables, deal, test, compute.resolve(), rivals))
