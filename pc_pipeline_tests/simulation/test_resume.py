"""A run that is killed goes on from its last finished batch; another run never finds its batches."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.simulation.monte_carlo import SimulationConfig, simulate_pool
from pc_pipeline.simulation.own_luck import luck_along
from pc_pipeline_tests.simulation.hand import pool_by_hand
from pc_pipeline_tests.simulation.test_monte_carlo import N_MONTHS, macro_by_hand, rows_from_macro

SLOW_RUN = textwrap.dedent(
    """
    import sys, time
    from pc_pipeline_tests.simulation.test_resume import run
    from pc_pipeline_tests.simulation.test_monte_carlo import rows_from_macro

    def slow_rows(macro):
        time.sleep(0.15)
        return rows_from_macro(macro)

    run(sys.argv[1], slow_rows)
    """
)


def run(folder=None, rows=rows_from_macro, macro=None, progress=None, seed=3, batch=2, **more):
    paths = macro_by_hand() if macro is None else macro
    config = SimulationConfig(seed=seed, batch_paths=batch)
    pool = pool_by_hand(90, N_MONTHS)
    return simulate_pool(pool, 3, paths, rows, None, config, folder=folder, progress=progress, **more)


def batches(folder):
    return sorted(place.name for place in folder.glob("*/batch_*.npz"))


def test_a_killed_run_goes_on_where_it_stood(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(batches(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = len(batches(tmp_path))
    assert 3 <= kept < 10
    seen = []
    resumed = run(tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == 2 * kept + 2, "finished batches are run again"
    assert resumed.cash_PTC.tobytes() == run().cash_PTC.tobytes()


def test_batches_may_be_cut_anew_and_half_written_ones_do_not_count(tmp_path):
    run(tmp_path, batch=3)
    (folder,) = tmp_path.iterdir()
    for place in sorted(folder.iterdir())[1::2]:
        place.unlink()
    (folder / "batch_000000000_000000020.part").write_bytes(b"half")
    assert run(tmp_path, batch=5).cash_PTC.tobytes() == run().cash_PTC.tobytes()
    assert not list(folder.glob("*.part"))


def test_other_inputs_are_another_run(tmp_path):
    run(tmp_path)
    for changed in (
        {"seed": 4},
        {"macro": 1.01 * macro_by_hand()},
        {"rows": lambda macro: rows_from_macro(0.9 * macro)},
        {"first_path": 7},
    ):
        n_folders = len(list(tmp_path.iterdir()))
        run(tmp_path, **changed)
        assert len(list(tmp_path.iterdir())) == n_folders + 1


def test_the_control_is_kept_with_its_batch(tmp_path):
    luck = luck_along(pool_by_hand(90, N_MONTHS), None, rows_from_macro, macro_by_hand())
    first = run(tmp_path, luck=luck)
    again = run(tmp_path, luck=luck)
    np.testing.assert_array_equal(first.control.luck_P, again.control.luck_P)
    assert np.ptp(first.control.luck_P) > 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SimulationError, match="disk has no room"):
        run(tmp_path)
