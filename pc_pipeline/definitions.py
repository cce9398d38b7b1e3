"""Name plate: what `dg dev`, `dagster-webserver` and the daemon load."""

from __future__ import annotations

import os
from pathlib import Path

from pc_pipeline.core.config import Settings
from pc_pipeline.orchestration.build import build_definitions

defs = build_definitions(
    Settings.from_environment(os.environ, root=Path(os.environ.get("DAGSTER_HOME") or Path.cwd()))
)
