"""Definitions, built by a function with overrides, so that tests inject instead of patching."""

from __future__ import annotations

import dagster as dg

from pc_pipeline.core.config import Settings
from pc_pipeline.orchestration.assets import loans, reports, scenarios, simulation, training
from pc_pipeline.orchestration.automation import JOBS, SCHEDULES, SENSORS
from pc_pipeline.orchestration.checks import build_checks
from pc_pipeline.orchestration.io_managers import ModelIOManager, TableIOManager
from pc_pipeline.orchestration.resources import ComputeResource, SettingsResource, StoreResource

ASSET_ROOMS = [scenarios, loans, training, simulation, reports]


def build_resources(settings: Settings) -> dict[str, object]:
    """Store, device, settings and IO managers for one project folder."""
    store = StoreResource(data_dir=str(settings.data_dir))
    return {
        "store": store,
        "compute": ComputeResource(device=settings.device),
        "settings": SettingsResource(
            recipe=settings.recipe,
            seed=settings.seed,
            deal=settings.deal,
            macro=settings.macro,
            deals_dir=str(settings.deals_dir),
        ),
        "tables": TableIOManager(store=store),
        "models": ModelIOManager(store=store),
    }


def build_definitions(settings: Settings) -> dg.Definitions:
    """All assets, checks, jobs, schedules and sensors over one project folder."""
    return dg.Definitions(
        assets=dg.load_assets_from_modules(ASSET_ROOMS),
        asset_checks=build_checks(),
        jobs=JOBS,
        schedules=SCHEDULES,
        sensors=SENSORS,
        resources=build_resources(settings),
        executor=dg.in_process_executor,
    )
