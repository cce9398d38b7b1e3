"""Several files as one: a crash before or after each single step leaves all old or all new."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core import swap
from pc_pipeline.core.store import Store

NAMES = ("a", "b", "c")


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


def put(root: Path, text: str, drop: list[Path] | None = None) -> None:
    def writer(name: str) -> Callable[[Path], object]:
        return lambda path: path.write_text(f"{name} {text}")

    swap.swap_in(root, {root / name / "file": writer(name) for name in NAMES}, drop or [])


def seen(root: Path) -> list[str]:
    swap.settle(root)
    return [(root / name / "file").read_text() for name in NAMES]


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Let the process die at the given disk operation of `swap`; the list counts those done."""
    done = [0]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object, **options: object) -> object:
            done[0] += 1
            if done[0] == step:
                raise Killed
            return real(*arguments, **options)

        return operation

    monkeypatch.setattr(swap, "flush", counted(swap.flush))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "rename", counted(os.rename))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(swap.shutil, "rmtree", counted(swap.shutil.rmtree))
    return done


def test_a_crash_at_every_step_leaves_all_old_or_all_new(tmp_path: Path) -> None:
    outcomes, step = [], 0
    while True:
        step += 1
        root = tmp_path / str(step)
        put(root, "old")
        (root / "gone").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            done = crash_at(patch, step)
            with contextlib.suppress(Killed):
                put(root, "new", drop=[root / "gone"])
        texts = seen(root)
        assert texts in ([f"{n} old" for n in NAMES], [f"{n} new" for n in NAMES]), step
        assert (root / "gone").exists() == texts[0].endswith("old")
        outcomes.append(texts[0])
        put(root, "next")
        assert seen(root) == [f"{name} next" for name in NAMES]
        assert list((root / swap.FOLDER).iterdir()) == []
        if done[0] < step:
            break
    assert len(outcomes) > 12
    assert outcomes == sorted(outcomes, reverse=True)  # old, then from one step on new


def test_a_writer_that_fails_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "old")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        swap.swap_in(
            tmp_path, {tmp_path / "a" / "file": lambda path: path.write_text("x"), tmp_path / "b": fails}
        )
    assert seen(tmp_path) == [f"{name} old" for name in NAMES]


def test_a_reader_never_sees_two_ages(tmp_path: Path) -> None:
    store, halt = Store(tmp_path), threading.Event()
    paths = {name: store.table_path(name) for name in NAMES}

    def land(age: int) -> None:
        frame = pl.DataFrame({"age": [age]})
        store.write_together(dict.fromkeys(paths.values(), frame.write_parquet))

    land(0)

    def keep_landing() -> None:
        age = 0
        while not halt.is_set():
            land(age := age + 1)

    writer = threading.Thread(target=keep_landing)
    writer.start()
    try:
        for _ in range(50):
            ages = [store.read_table(name)["age"][0] for name in NAMES]
            assert ages == sorted(ages)  # a later read is never older
    finally:
        halt.set()
        writer.join()
