"""From simulated cash to tranche reports, the committee report and the analyst's warehouse."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from pc_pipeline.engines import stages
from pc_pipeline.orchestration.assets.common import OWNERS, as_markdown, plot_metadata
from pc_pipeline.orchestration.partitions import SCENARIOS
from pc_pipeline.orchestration.resources import SettingsResource, StoreResource
from pc_pipeline.reports import plots

TABLES = {
    "tranche_report": "EL, loss probability, IRR, WAL and test failures per tranche.",
    "pool_report": "EL, VaR and CVaR of the pool with intervals.",
    "cash_flow_report": "Pool cash by month: mean and quantiles.",
    "tranche_balance_report": "Tranche balances by month: mean and quantiles.",
}


@dg.multi_asset(
    name="tranche_report_tables",
    group_name="reports",
    partitions_def=SCENARIOS,
    outs={
        name: dg.AssetOut(
            io_manager_key="tables", kinds={"polars", "parquet"}, owners=OWNERS, description=text
        )
        for name, text in TABLES.items()
    },
)
def tranche_report_tables(
    context: dg.AssetExecutionContext,
    simulations: pl.DataFrame,
    pool: pl.DataFrame,
    settings: SettingsResource,
) -> Iterator[dg.Output[pl.DataFrame]]:
    deal = stages.find_deal(settings.deal, settings.deals_dir, pool)
    results = stages.report(context.partition_key, simulations, pool, deal)
    frames = stages.report_frames(results)
    losses = plot_metadata(plots.loss_distribution(results.portfolio_losses, results.weights), "losses")
    yield from (
        dg.Output(frames[name], output_name=name, metadata=_table(frames[name], losses)) for name in TABLES
    )


def _table(frame: pl.DataFrame, losses: dg.MarkdownMetadataValue) -> dict[str, Any]:
    return {"table": as_markdown(frame.head(20).to_dicts()), "loss distribution": losses}


@dg.asset(
    group_name="reports",
    kinds={"excel", "html"},
    owners=OWNERS,
    deps=[
        "tranche_report",
        "pool_report",
        "cash_flow_report",
        "tranche_balance_report",
        "macro_fan_report",
        "simulations",
        "joint_model",
    ],
    description="One workbook and one self-contained HTML page over all scenarios.",
)
def committee_report(store: StoreResource, settings: SettingsResource) -> dg.MaterializeResult[Any]:
    recipe = settings.load()
    paths = stages.committee_report(store.store, recipe.name, recipe.seed, settings.deal, settings.deals_dir)
    return dg.MaterializeResult(metadata={name: dg.MetadataValue.path(str(p)) for name, p in paths.items()})


@dg.asset(
    group_name="storage",
    kinds={"duckdb"},
    owners=OWNERS,
    pool="warehouse",
    deps=["loan_tape", "loan_panel", "transitions", "tranche_report"],
    description="All tables as real tables in one DuckDB file, built beside and swapped in.",
)
def warehouse(store: StoreResource) -> dg.MaterializeResult[Any]:
    path = store.store.build_warehouse()
    return dg.MaterializeResult(
        metadata={"path": dg.MetadataValue.path(str(path)), "bytes": path.stat().st_size}
    )
