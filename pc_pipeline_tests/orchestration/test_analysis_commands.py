"""`pc analyse` on the store of a finished tiny run."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pc_pipeline.analysis_commands import analyse_app, read_mix
from pc_pipeline.core.errors import ConfigError, SimulationError
from pc_pipeline.core.store import Store
from pc_pipeline_tests.orchestration.conftest import DEALS


def analyse(store: Store, *arguments: str):
    return CliRunner().invoke(
        analyse_app,
        [*arguments, "--data", str(store.root), "--deals-dir", str(DEALS)],
        catch_exceptions=False,
    )


def test_sensitivities_leave_tables_and_a_page(chain: Store) -> None:
    answer = analyse(chain, "sensitivities", "--paths", "1", "--lines", "6")
    assert answer.exit_code == 0, answer.output
    macro = pl.read_parquet(chain.report_path("sensitivities_macro.parquet"))
    assert {"pool expected loss", "Senior expected loss"} <= set(macro["target"])
    assert "<svg" in chain.report_path("sensitivities.html").read_text()


def test_a_block_leaves_the_pool(chain: Store) -> None:
    answer = analyse(chain, "pool-change", "--remove", "asset_class = 'consumer'", "--paths", "8")
    assert answer.exit_code == 0, answer.output
    table = pl.read_parquet(chain.report_path("pool_change.parquet"))
    pool = table.filter((pl.col("of") == "pool") & (pl.col("measure") == "expected_loss"))
    assert pool["change"][0] != 0.0


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="nothing to analyse"):
        analyse(Store(tmp_path), "tails")


def test_mixes_are_read() -> None:
    assert read_mix("baseline=0.6, severe=0.4") == {"baseline": 0.6, "severe": 0.4}
    assert read_mix("adverse") == {"adverse": 1.0}
    with pytest.raises(ConfigError, match="mix"):
        read_mix("a=b=c")
