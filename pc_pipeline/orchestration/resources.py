"""What assets are given: the store, the compute device, and the settings of this run.

Everything here can be changed per run in Dagster's launchpad and is recorded with the run.
"""

from pathlib import Path

import dagster as dg

from pc_pipeline.core.store import Store
from pc_pipeline.models.device import resolve_device
from pc_pipeline.recipes import Recipe, get_recipe


class StoreResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folder that holds tables, models, reports and the DuckDB warehouse."""

    data_dir: str

    @property
    def store(self) -> Store:
        """The store itself."""
        return Store(Path(self.data_dir).expanduser().resolve())


class ComputeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where networks are trained and run: 'cpu', 'cuda' or 'auto' (CUDA where there is a device)."""

    device: str = "auto"

    def resolve(self) -> str:
        """'cpu' or 'cuda'."""
        return resolve_device(self.device)


class SettingsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Recipe, seed and the user's own inputs; empty text means the default."""

    recipe: str = "base"
    seed: int = 42
    deal: str = ""
    macro: str = ""
    deals_dir: str = "data/deals"

    def load(self) -> Recipe:
        """The complete recipe, under this seed."""
        return get_recipe(self.recipe, seed=self.seed)
