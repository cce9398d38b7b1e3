"""How asset values rest in the store: tables as validated Parquet partitions, models as weights + card."""

from typing import Any

import dagster as dg
import polars as pl

from pc_pipeline.engines import stages
from pc_pipeline.loans.panel_store import PACKED_TABLES
from pc_pipeline.models.checkpoint import load_model, save_model
from pc_pipeline.orchestration.resources import StoreResource
from pc_pipeline.schemas.tables import TABLES, describe, validate
from pc_pipeline.schemas.units import OBSERVED


def table_metadata(table: str, frame: pl.DataFrame) -> dict[str, Any]:
    """Row count and column schema, as the UI shows them."""
    described = describe(table) if table in TABLES else [(n, str(t), "") for n, t in frame.schema.items()]
    columns = [dg.TableColumn(name, kind, description=text) for name, kind, text in described]
    return {
        "dagster/row_count": frame.height,
        "dagster/column_schema": dg.TableSchema(columns=columns),
    }


class TableIOManager(dg.ConfigurableIOManager):  # type: ignore[misc]
    """A polars frame <-> one table, or one scenario's partition of it. Refuses what breaks the schema."""

    store: dg.ResourceDependency[StoreResource]

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        table = context.asset_key.path[-1]
        scenario = context.partition_key if context.has_partition_key else None
        rows = validate(table, obj, where=scenario or "") if table in TABLES else obj
        notes = stages.panel_notes(self.store.store) if scenario == OBSERVED else None
        form = PACKED_TABLES.get(table)
        path = self.store.store.write_table(table, rows, scenario, form=form, notes=notes)
        context.add_output_metadata({**table_metadata(table, obj), "path": dg.MetadataValue.path(str(path))})

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        table = context.asset_key.path[-1]
        one = context.has_partition_key and context.has_asset_partitions
        return self.store.store.read_table(table, context.partition_key if one else None)


class ModelIOManager(dg.ConfigurableIOManager):  # type: ignore[misc]
    """A trained model with its card <-> safetensors + JSON; several models lie side by side by name."""

    store: dg.ResourceDependency[StoreResource]

    def handle_output(self, context: dg.OutputContext, obj: dict[str, tuple[Any, dict[str, Any]]]) -> None:
        folder = self.store.store.model_folder(context.asset_key.path[-1])
        source = {stages.LEARNED_FROM: stages.learned_from(self.store.store)}
        for name, (model, card) in obj.items():
            known = {key: value for key, value in card.items() if key not in source}
            save_model(folder / name, model, known | source)
        context.add_output_metadata({"path": dg.MetadataValue.path(str(folder))})

    def load_input(self, context: dg.InputContext) -> dict[str, tuple[Any, dict[str, Any]]]:
        folder = self.store.store.model_folder(context.asset_key.path[-1])
        return {path.name: load_model(path) for path in sorted(folder.iterdir()) if path.is_dir()}
