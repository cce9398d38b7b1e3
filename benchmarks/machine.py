"""What every benchmark note begins with, and where it goes. Not here: any measurement."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

_LIBRARIES = ("numpy", "numba", "polars", "duckdb", "pyarrow")


def cpu_name() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or "unknown processor"


def machine_line() -> str:
    """Date, hardware and versions in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {os.cpu_count()} cores (load {load:.1f} at the start), "
        f"Python {platform.python_version()}, {libraries}."
    )


def write_result(folder: Path, name: str, text: str) -> Path:
    """Write and print a dated note."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{datetime.now(UTC):%Y-%m-%d}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    return path
