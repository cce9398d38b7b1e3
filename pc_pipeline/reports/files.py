"""Writing a report file whole. Here: one atomic write. Not here: what is in it."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: str | Path, content: bytes) -> Path:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one.

    Returns:
        The path. Missing folders are made; a failed write leaves nothing behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target
