"""Monte Carlo, one partition a scenario."""

import dagster as dg
import polars as pl

from pc_pipeline.engines import stages
from pc_pipeline.orchestration.assets.common import HEAVY_TAGS, OWNERS, plot_metadata
from pc_pipeline.orchestration.assets.training import Models
from pc_pipeline.orchestration.partitions import SCENARIOS
from pc_pipeline.orchestration.resources import ComputeResource, SettingsResource
from pc_pipeline.reports import plots


@dg.multi_asset(
    group_name="simulation",
    partitions_def=SCENARIOS,
    op_tags=HEAVY_TAGS,
    pool="gpu",
    outs={
        "simulations": dg.AssetOut(
            io_manager_key="tables",
            kinds={"numba", "parquet"},
            owners=OWNERS,
            description="Pool cash by path, month and channel: macro paths from the VAE, rows from the "
            "transition transformer, loans from the compiled loan model.",
        ),
        "macro_fan_report": dg.AssetOut(
            io_manager_key="tables",
            kinds={"parquet"},
            owners=OWNERS,
            description="Quantiles of the simulated macro series by month.",
        ),
    },
)
def simulations_and_macro_fan(
    context: dg.AssetExecutionContext,
    joint_model: Models,
    pool: pl.DataFrame,
    macro_scenarios: pl.DataFrame,
    settings: SettingsResource,
    compute: ComputeResource,
) -> tuple[dg.Output[pl.DataFrame], dg.Output[pl.DataFrame]]:
    run = stages.simulate(
        settings.load().simulation,
        context.partition_key,
        joint_model,
        pool,
        macro_scenarios,
        compute.resolve(),
    )
    plot = plots.macro_fan(run.macro_fan, context.partition_key)
    return (
        dg.Output(run.table, output_name="simulations", metadata=run.metadata),
        dg.Output(
            run.macro_fan, output_name="macro_fan_report", metadata={"fan": plot_metadata(plot, "fan")}
        ),
    )
