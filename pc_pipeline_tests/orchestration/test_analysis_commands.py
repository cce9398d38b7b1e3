"""`pc analyse` on the store of a finished tiny run, as a person types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.store import Store
from pc_pipeline_tests.orchestration.conftest import DEALS


def analyse(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pc_pipeline", "analyse", *words, "--data", str(root)]
    return subprocess.run([*command, "--deals-dir", str(DEALS)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_sensitivities_leave_tables_and_a_page(chain: Store) -> None:
    answer = analyse(chain.root, "sensitivities", "--paths", "1", "--lines", "6")
    assert answer.returncode == 0, answer.stderr
    macro = pl.read_parquet(chain.report_path("sensitivities_macro.parquet"))
    assert {"pool expected loss", "Senior expected loss"} <= set(macro["target"])
    assert "<svg" in chain.report_path("sensitivities.html").read_text()


def test_a_block_leaves_the_pool(chain: Store) -> None:
    answer = analyse(chain.root, "pool-change", "--remove", "asset_class = 'consumer'", "--paths", "8")
    assert answer.returncode == 0, answer.stderr
    table = pl.read_parquet(chain.report_path("pool_change.parquet"))
    pool = table.filter((pl.col("of") == "pool") & (pl.col("measure") == "expected_loss"))
    assert pool["change"][0] != 0.0


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    answer = analyse(tmp_path, "tails")
    assert answer.returncode == 1
    assert "nothing to analyse" in answer.stderr
    assert "make run" in answer.stderr
