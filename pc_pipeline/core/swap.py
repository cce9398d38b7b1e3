"""Several files swapped in as one: all of them or none, whenever the process dies.

Here: `swap_in` and `settle`. Not here: a single file (`store.replace_file`), what the files hold.

    <root>/.swap/journal.json       what is about to move where: its appearance is the moment of the swap
    <root>/.swap/<id>/0 1 2 ...     the new files, whole and flushed before the journal appears
    <root>/.swap.lock               held while files are written and moved

A process killed before the journal is there leaves the old files; one killed later leaves the journal, and
whoever opens the store next finishes the moves (`settle`). Moving again what has moved does nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = ".swap"
JOURNAL: Final = "journal.json"
LOCK: Final = ".swap.lock"


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Wait for the store's swap lock; the system releases it when a process dies."""
    with (root / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def swap_in(root: Path, files: Mapping[Path, Callable[[Path], object]], drop: Sequence[Path] = ()) -> None:
    """Replace files under `root` together.

    Args:
        root: of the store; made if absent.
        files: path -> function that writes the new file at the path it is given.
        drop: folders that go in the same moment; absent ones do not matter.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        _finish(root)
        _clear(root)
        folder = root / FOLDER / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            moves = []
            for number, (path, write) in enumerate(files.items()):
                made = folder / str(number)
                write(made)
                flush(made)
                moves.append([str(made.relative_to(root)), str(path.relative_to(root))])
            flush(folder)
            note = {"moves": moves, "drop": [str(place.relative_to(root)) for place in drop]}
            draft = folder / JOURNAL
            draft.write_text(json.dumps(note), encoding="utf-8")
            flush(draft)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        os.rename(draft, root / FOLDER / JOURNAL)  # from here on the new files count
        flush(root / FOLDER)
        _finish(root)
        _clear(root)


def settle(root: Path) -> None:
    """Finish what a killed process had begun to swap in; waits for one that is at it."""
    if (root / FOLDER / JOURNAL).exists():
        with _locked(root):
            _finish(root)


def _finish(root: Path) -> None:
    """Carry out the journal, if there is one. The lock is held."""
    journal = root / FOLDER / JOURNAL
    if not journal.exists():
        return
    note = json.loads(journal.read_text(encoding="utf-8"))
    touched = set()
    for place in note["drop"]:
        shutil.rmtree(root / place, ignore_errors=True)
    for made, path in note["moves"]:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (root / made).exists():
            os.replace(root / made, target)
        touched.add(target.parent)
    for folder in touched:
        flush(folder)
    journal.unlink()
    flush(root / FOLDER)


def _clear(root: Path) -> None:
    """Remove what killed processes left unfinished. The lock is held and there is no journal."""
    for leftover in (root / FOLDER).glob("*"):
        shutil.rmtree(leftover, ignore_errors=True)
