"""From a delivered or generated tape to a panel, its transitions and the pool to simulate."""

from typing import Any

import dagster as dg
import polars as pl

from pc_pipeline.engines import stages
from pc_pipeline.orchestration.assets.common import OWNERS, as_markdown, plot_metadata
from pc_pipeline.orchestration.io_managers import table_metadata
from pc_pipeline.orchestration.partitions import SCENARIOS
from pc_pipeline.orchestration.resources import SettingsResource, StoreResource
from pc_pipeline.reports import model_plots

KINDS = {"polars", "parquet"}


class LandingConfig(dg.Config):
    """Which delivery to take in.

    Attributes:
        path: a tape file or a folder of them.
        adapter: name of a format; '' recognises it from the content.
        mapping: YAML with the user's column names, units and codes.
        as_of: YYYY-MM of the delivery; '' takes the last reported month.
        pool: name of the pool it is of; '' finds it by name and loans.
    """

    path: str
    adapter: str = ""
    mapping: str = ""
    as_of: str = ""
    pool: str = ""


@dg.asset(
    group_name="loans",
    kinds={"polars", "parquet"},
    owners=OWNERS,
    pool="warehouse",
    description="A delivered tape: recognised, mapped, validated. Good rows land, refused rows lie in the "
    "quarantine table with their reason. Absent while the pool is generated.",
)
def landing(
    config: LandingConfig, store: StoreResource, settings: SettingsResource
) -> dg.MaterializeResult[Any]:
    landed = stages.land(
        store.store,
        config.path,
        pool=config.pool,
        adapter=config.adapter,
        mapping=config.mapping,
        as_of=config.as_of,
        history=settings.macro,
    )
    note = stages.read_landing(store.store)
    return dg.MaterializeResult(
        metadata={
            **table_metadata("loan_tape", landed.loans),
            "adapter": landed.adapter,
            "delinquency rule": dg.MetadataValue.md(landed.rule),
            "as of": str(landed.as_of),
            "pool": note.pool if note else "",
            "panel rows": landed.panel.height,
            "quarantined rows": landed.quarantine.height,
            "reasons": as_markdown(stages.quarantine_reasons(landed.quarantine).to_dicts()),
        }
    )


@dg.asset(
    group_name="loans",
    kinds=KINDS,
    owners=OWNERS,
    io_manager_key="tables",
    deps=["landing"],
    description="Static facts of each loan at origination, generated or from the landed tape.",
)
def loan_tape(store: StoreResource, settings: SettingsResource) -> dg.Output[pl.DataFrame]:
    tape = stages.loan_tape(store.store, settings.load().tape)
    return dg.Output(tape, metadata={"classes": as_markdown(stages.tape_profile(tape).to_dicts())})


@dg.multi_asset(
    group_name="loans",
    partitions_def=SCENARIOS,
    outs={
        "loan_panel": dg.AssetOut(
            io_manager_key="tables",
            kinds=KINDS,
            owners=OWNERS,
            description="One row per loan and month until its terminal row, lived under the scenario's "
            "macro paths; partition 'observed' holds real history.",
        ),
        "recoveries": dg.AssetOut(
            io_manager_key="tables", kinds=KINDS, owners=OWNERS, description="Dated recovery cash."
        ),
    },
)
def loan_panel_and_recoveries(
    context: dg.AssetExecutionContext,
    macro_scenarios: pl.DataFrame,
    loan_tape: pl.DataFrame,
    store: StoreResource,
    settings: SettingsResource,
) -> tuple[dg.Output[pl.DataFrame], dg.Output[pl.DataFrame]]:
    book = stages.loan_panel(
        store.store, settings.load().tape, context.partition_key, loan_tape, macro_scenarios
    )
    states = as_markdown(stages.state_profile(book.panel).to_dicts())
    return (
        dg.Output(book.panel, output_name="loan_panel", metadata={"states": states}),
        dg.Output(book.recoveries, output_name="recoveries"),
    )


@dg.asset(
    group_name="loans",
    kinds={"duckdb", "parquet"},
    owners=OWNERS,
    io_manager_key="tables",
    pool="warehouse",
    description="Counts of monthly moves by path, cohort and month of arrival, over all scenarios. Gaps and "
    "duplicate months never make a move.",
)
def transitions(loan_panel: pl.DataFrame, loan_tape: pl.DataFrame) -> dg.Output[pl.DataFrame]:
    counts = stages.transitions(loan_panel, loan_tape)
    heat = model_plots.transition_heat_map(stages.transition_matrix(counts))
    return dg.Output(
        counts, metadata={"moves": int(counts["n_moves"].sum()), "matrix": plot_metadata(heat, "matrix")}
    )


@dg.asset(
    group_name="loans",
    kinds=KINDS,
    owners=OWNERS,
    io_manager_key="tables",
    description="The pool at the cut-off: balance, state and age of each living loan.",
)
def pool(loan_tape: pl.DataFrame, store: StoreResource) -> dg.Output[pl.DataFrame]:
    snapshot = stages.pool(store.store, loan_tape)
    return dg.Output(
        snapshot,
        metadata={
            "current balance": float(snapshot["current_balance"].sum()),
            "classes": as_markdown(stages.tape_profile(snapshot).to_dicts()),
        },
    )
