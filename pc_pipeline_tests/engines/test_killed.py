"""A process killed at any moment of taking in and landing leaves a whole delivery and a whole landing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.store import Store
from pc_pipeline.engines import stages
from pc_pipeline.loans.ingest import deliveries, verify
from pc_pipeline_tests.engines.land_forever import ROWS, write_tape

TABLES = ("landing_loans", "landing_panel")


def killed_after(command: list[str], seconds: float) -> list[int]:
    """Numbers that the process had begun to land when it was killed, that long after the first."""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    return [int(number) for number in (first, *rest)]


def check_whole(store: Store) -> int:
    """The one number that note and landed tables are of; every delivery is what its card says."""
    found = deliveries(store, "killed")
    for one in found:
        verify(one)
        assert one.table("loans")["original_balance"].n_unique() == 1
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    note = stages.read_landing(store)
    if note is None:
        assert not any(store.has_table(name) for name in TABLES)
        return 0
    number = int(note.source.rpartition("-")[2])
    for name in TABLES:
        table = store.read_table(name)
        assert table.height == ROWS
        assert table["original_balance"].unique().to_list() == [1000.0 + number], name
    quality = store.read_table("data_quality").drop_nulls("delivery")["delivery"].unique().to_list()
    landed = [one for one in found if one.id in quality]
    assert [one.table("loans")["original_balance"][0] for one in landed] == [1000.0 + number]
    return number


def kill_and_check(folder: Path, rounds: int) -> None:
    store, chance = Store(folder / "store"), random.Random(5)
    reached = before = 0
    command = [sys.executable, "-m", "pc_pipeline_tests.engines.land_forever"]
    for _ in range(rounds):
        begun = killed_after(
            [*command, str(store.root), str(folder / "source"), str(reached + 1)], chance.uniform(0, 0.5)
        )
        number = check_whole(store)
        done = begun[-2] if len(begun) > 1 else before
        assert done <= number <= begun[-1]  # what was done is there; the last one may be or not
        reached, before = begun[-1], number
    last = write_tape(folder / "source", reached + 1)
    stages.land(store, str(last), pool="killed")
    assert check_whole(store) == reached + 1
    assert list(store.root.rglob(".tmp-*")) == []
    assert list((store.root / ".swap").glob("*")) == []


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_and_check(tmp_path, rounds=2)


@pytest.mark.slow
def test_killed_fifty_times(tmp_path: Path) -> None:
    kill_and_check(tmp_path, rounds=50)


def test_a_note_of_a_landing_without_its_tables_cannot_be(tmp_path: Path) -> None:
    """The tables are readable as of the moment the note says so, and queried alike."""
    store = Store(tmp_path / "store")
    stages.land(store, str(write_tape(tmp_path, 7)), pool="killed")
    assert check_whole(store) == 7
    assert store.query("SELECT avg(original_balance) AS b FROM landing_panel")["b"].to_list() == [1007.0]
    assert store.read_table("landing_panel").equals(
        store.query("SELECT * FROM landing_panel").sort(pl.int_range(pl.len()))
    )
