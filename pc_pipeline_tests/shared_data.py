"""Where the real data sets lie that may be used but not copied: beside the project, in `shared/`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_path(name: str) -> Path:
    """`name` under the shared folder; the test is skipped where that is absent.

    The folder is PC_SHARED, or `shared/` inside or beside the project.
    """
    places = [Path(os.environ["PC_SHARED"])] if "PC_SHARED" in os.environ else []
    places += [ROOT / "shared", ROOT.parent / "shared"]
    for place in places:
        if (place / name).exists():
            return place / name
    pytest.skip(f"real data {name!r} is not here (set PC_SHARED, or place shared/ beside the project)")
