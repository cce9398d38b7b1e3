"""Finished batches of a run, kept on disk: an interrupted run goes on where it stood.

Here: `BatchStore`, the run's fingerprint, the check of free space. Not here: what is computed
(`simulation.monte_carlo`).

A run's folder is named by a fingerprint of all that decides its numbers, so a run of other inputs never
finds foreign batches. A batch is written to a temporary name, flushed and renamed: it is there whole or not
at all, whatever killed the process. How paths are cut into batches may change between attempts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.schemas.units import N_CASH
from pc_pipeline.simulation.pool import PoolArrays

_NAME = re.compile(r"batch_(\d{9})_(\d{9})\.npz")
_SPARE = 1.1  # free space asked for, as a multiple of what will be written


def fingerprint(pool: PoolArrays, *arrays: np.ndarray | None, numbers: tuple[int, ...]) -> str:
    """Hex digest of a pool, further arrays and whole numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=12)
    for array in (*(getattr(pool, field.name) for field in fields(pool)), *arrays):
        if array is None:
            digest.update(b"none")
        else:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_disk(folder: str | Path, n_paths: int, n_months: int) -> None:
    """Refuse to keep so many further paths where the disk has no room for them.

    Args:
        folder: where they would go; it need not exist.

    Raises:
        SimulationError: no room.
    """
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    needed, free = n_paths * n_months * N_CASH * 8 * _SPARE, shutil.disk_usage(place).free
    if needed > free:
        raise SimulationError(
            "the disk has no room for the run",
            expected=f"{needed / 1e6:.0f} MB free",
            got=f"{free / 1e6:.0f} MB",
            where=str(folder),
        )


def kept_paths(root: str | Path, n_months: int) -> int:
    """Paths whose batches lie under `root`, of whatever runs: at most so many need not be written again."""
    held = sum(place.stat().st_size for place in Path(root).glob("*/batch_*.npz"))
    return int(held // (n_months * N_CASH * 8))


@dataclass(frozen=True, slots=True)
class BatchStore:
    """Batches of one run in `folder`; paths are numbered from 0 within the run."""

    folder: Path

    @classmethod
    def open(cls, root: str | Path, name: str, n_paths: int, n_months: int) -> BatchStore:
        """The run's folder under `root`, made where missing.

        Raises:
            SimulationError: the disk has no room for the paths still to come.
        """
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        for scrap in folder.glob("*.part"):
            scrap.unlink()
        store = cls(folder)
        check_disk(folder, n_paths - sum(high - low for low, high, _ in store.finished(n_paths)), n_months)
        return store

    def finished(self, n_paths: int) -> list[tuple[int, int, Path]]:
        """(low, high, file) of the batches on disk, in order, none overlapping the one before."""
        found, reached = [], 0
        for place in sorted(self.folder.iterdir()):
            match = _NAME.fullmatch(place.name)
            if match and reached <= int(match[1]) < int(match[2]) <= n_paths:
                reached = int(match[2])
                found.append((int(match[1]), reached, place))
        return found

    def write(self, low: int, high: int, cash_PTC: np.ndarray, control_PX: np.ndarray) -> None:
        """Keep a finished batch of paths low..high-1."""
        place = self.folder / f"batch_{low:09d}_{high:09d}.npz"
        scrap = place.with_suffix(".part")
        with scrap.open("wb") as file:
            np.savez(file, cash=cash_PTC, control=control_PX)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scrap, place)

    def read(self, place: Path, cash_PTC: np.ndarray, control_PX: np.ndarray) -> None:
        """Fill in a batch of the size given."""
        with np.load(place, allow_pickle=False) as kept:
            cash_PTC[:] = kept["cash"]
            control_PX[:] = kept["control"]


def gaps(finished: list[tuple[int, int, Path]], n_paths: int, step: int) -> Iterator[tuple[int, int]]:
    """(low, high) of batches of at most `step` paths that are still to be run, in order."""
    low = 0
    for start, stop in [*((a, b) for a, b, _ in finished), (n_paths, n_paths)]:
        while low < start:
            high = min(low + step, start)
            yield low, high
            low = high
        low = max(low, stop)
