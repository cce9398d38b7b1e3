"""One service for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pc_pipeline_tests.service.harness import Served, quick_settings, serving


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running service on an empty store."""
    folder: Path = tmp_path_factory.mktemp("service") / "data"
    with serving(quick_settings(folder)) as running:
        yield running
