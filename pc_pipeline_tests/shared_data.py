"""Real data beside the checkout: found, or the test is skipped with the reason. Nothing is copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(os.environ.get("PC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(relative: str) -> Path:
    """Path of a shared file or folder; skips the calling test where it is absent."""
    path = _ROOT / relative
    if not path.exists():
        pytest.skip(f"shared data not here: {path} (set PC_SHARED to the folder that holds data/)")
    return path
