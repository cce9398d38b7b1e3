"""Macro paths, one partition a scenario."""

import dagster as dg
import polars as pl

from pc_pipeline.engines import stages
from pc_pipeline.orchestration.assets.common import OWNERS, plot_metadata
from pc_pipeline.orchestration.partitions import SCENARIOS
from pc_pipeline.orchestration.resources import SettingsResource, StoreResource
from pc_pipeline.reports import plots


@dg.asset(
    group_name="scenarios",
    partitions_def=SCENARIOS,
    kinds={"python", "parquet"},
    owners=OWNERS,
    io_manager_key="tables",
    deps=["landing"],
    description="Monthly paths of the nine macro series under one scenario: many draws around the "
    "scenario's mean path. Partition 'observed' is the real history beside a real tape.",
)
def macro_scenarios(
    context: dg.AssetExecutionContext, store: StoreResource, settings: SettingsResource
) -> dg.Output[pl.DataFrame]:
    paths = stages.macro_paths(
        store.store, settings.load().macro_paths, context.partition_key, history=settings.macro
    )
    fan = plots.macro_fan(stages.macro_fan(paths), context.partition_key)
    return dg.Output(
        paths.frame,
        metadata={
            "paths": paths.frame["macro_path_id"].n_unique(),
            "source": paths.source,
            "fan": plot_metadata(fan, "macro fan"),
        },
    )
