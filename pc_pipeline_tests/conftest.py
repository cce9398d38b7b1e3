"""Shared by all tests: matplotlib without a screen, two torch threads at most, who runs beside whom.

Under `pytest -n` a file stays in one process, and the tests around the tiny chain in one too, so that each
costly fixture is built once.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups for `--dist loadgroup`: a file, or the folder that shares the chain."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        folder = item.path.parent
        group = folder if folder.name == "orchestration" else item.path
        item.add_marker(pytest.mark.xdist_group(group.relative_to(Path(__file__).parent).as_posix()))
