"""`pc deal check`, `pc deal run` and `pc price` as a shell calls them: files in, JSON out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pc_pipeline.core.errors import DataError, DealError
from pc_pipeline_tests.shared_data import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:'click.utils:DeprecationWarning")  # typer's import of click

DEAL = """
name: Hand
closing_date: 2024-01-01
payments: {day: 1}
tranches:
  - {name: A, amount: 800.0, coupon: 0.06}
  - {name: B, amount: 200.0, kind: residual}
collateral: {pool_balance: 1000.0}
fees: [{name: servicer, rate: 0.012}]
"""
# month 1: interest 10, fee 1000 x 1.2 % / 12 = 1, A: 800 x 6 % / 12 = 4, residual 5; principal 100 to A
COLLECTIONS = "month,interest,principal,defaults,recoveries\n2024-01,10,100,0,0\n2024-02,9,700,50,20\n"


def pc(*words: str | Path) -> str:
    """What a command that must succeed prints."""
    from typer.testing import CliRunner

    from pc_pipeline.cli import app

    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def deal(tmp_path: Path) -> Path:
    path = tmp_path / "deal.yaml"
    path.write_text(DEAL)
    return path


def test_run_a_deal_by_hand(deal: Path, tmp_path: Path) -> None:
    collections = tmp_path / "c.csv"
    collections.write_text(COLLECTIONS)
    answer = json.loads(pc("deal", "run", deal, "--collections", collections, "--json"))
    first, second = answer["payments"]
    assert first["date"] == "2024-02-01"
    assert first["fees"]["servicer"] == pytest.approx(1.0)
    assert first["classes"]["A"]["interest"] == pytest.approx(4.0)
    assert first["classes"]["A"]["principal"] == pytest.approx(100.0)
    assert first["residual"] == pytest.approx(5.0)
    # month 2: principal 700 + recovery 20, all to A, which owes 700: 20 are left for the residual,
    # beside interest 9 - fee 0.9 - coupon 3.5
    assert second["classes"]["A"]["balance"] == pytest.approx(0.0)
    assert second["residual"] == pytest.approx(20.0 + 9.0 - 0.9 - 3.5)
    assert answer["pool_outstanding_percent"] == pytest.approx(100 * (1000 - 100 - 700 - 50) / 1000)
    assert "end with 15.0 % of the pool outstanding" in pc("deal", "run", deal, "--collections", collections)
    # bought at par a class yields its coupon
    assert answer["classes"]["A"]["price"] == 100.0
    assert answer["classes"]["A"]["yield_percent"] == pytest.approx(6.0, abs=1e-6)


def test_price_a_deal_at_a_vector_of_speeds(deal: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.csv"
    pool.write_text("balance,rate,remaining_term\n1000,0.08,24\n")
    words = ("price", deal, "--pool", pool, "--cdr", "2", "--severity", "40", "--lag", "3", "--json")
    flat = json.loads(pc(*words, "--cpr", "10"))
    ramp = json.loads(pc(*words, "--cpr", "0x6,10x6,30"))
    assert flat["assumptions"]["cpr"] == 10.0
    prepaid = ramp["collections"]["prepaid_principal"]
    assert prepaid[5] == 0.0
    assert prepaid[6] == pytest.approx(prepaid[7], rel=0.2)
    assert prepaid[12] > 2 * prepaid[7]
    for answer in (flat, ramp):
        paid = sum(answer["collections"][name][t] for name in ("scheduled_principal", "prepaid_principal",
                   "defaulted_balance") for t in range(len(prepaid)))  # fmt: skip
        assert paid == pytest.approx(1000.0)
        assert answer["classes"]["A"]["loss_percent"] == pytest.approx(0.0)


def test_errors_name_the_clause(deal: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool.csv"
    pool.write_text("balance,rate,remaining_term\n1000,0.08,24\n")
    with pytest.raises(DataError, match="not a number or a vector"):
        pc("price", deal, "--pool", pool, "--cpr", "ten")
    pool.write_text("balance,rate,remaining_term\n1000,8,24\n")
    with pytest.raises(DataError, match="rate"):
        pc("price", deal, "--pool", pool, "--cpr", "10")
    deal.write_text(DEAL.replace("coupon: 0.06", "coupon: 6"))
    with pytest.raises(DealError, match=r"deal.yaml:6: tranches.0.coupon"):
        pc("deal", "check", deal)


def test_a_shell_gets_the_error_without_a_traceback(deal: Path) -> None:
    deal.write_text(DEAL.replace("day: 1", "day: 41"))
    run = subprocess.run(
        [sys.executable, "-m", "pc_pipeline", "deal", "check", str(deal)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert "deal.yaml:4" in run.stderr
    assert "Traceback" not in run.stderr


def test_shipped_deals_pass_the_check() -> None:
    for path in sorted((ROOT / "data" / "deals").glob("*.yaml"))[:2]:
        assert ": ok, " in pc("deal", "check", path)
