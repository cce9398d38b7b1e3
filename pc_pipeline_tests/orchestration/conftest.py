"""One tiny chain through a real Dagster instance, shared by all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pc_pipeline.core.config import Settings
from pc_pipeline.core.store import Store
from pc_pipeline.orchestration.launch import RunRequest, run_chain

DEALS = Path(__file__).parents[2] / "data" / "deals"
SCENARIOS = ("baseline", "adverse", "severely_adverse")


def settings_for(folder: Path, **changes: object) -> Settings:
    """Settings of a project in a folder of its own."""
    return Settings(data_dir=folder, recipe="tiny", deals_dir=DEALS, device="cpu", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance on disk."""
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as made:
        yield made


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the shared chain."""
    return settings_for(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def chain(settings: Settings, instance: dg.DagsterInstance) -> Store:
    """The store after the tiny chain has run over three scenarios."""
    run_chain(settings, RunRequest(scenarios=SCENARIOS), instance)
    return Store(settings.data_dir)
