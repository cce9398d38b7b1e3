"""`pc ingest`, `pc map`, `pc history` as a person types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.loans.ingest import read_tape

pytestmark = pytest.mark.filterwarnings("ignore:'click.utils:DeprecationWarning")  # typer's import of click

TAPE = """AccountNo,Opened,Term,AmountK,APR,Product,Repayment
1001,15.01.2023,2,10,6.5,consumer,annuity
1002,20.02.2023,3,20,7.0,consumer,annuity
1003,20.02.2023,3,-5,7.0,consumer,annuity
"""
MAPPING = """format: 1
tables:
  - table: loan_tape
    file: book.csv
    columns:
      loan_id: AccountNo
      origination_date: {from: Opened, format: "%d.%m.%Y"}
      term_months: {from: Term, unit: years}
      original_balance: {from: AmountK, unit: thousands}
      interest_rate: {from: APR, unit: percent}
      asset_class: Product
      amortization_type: Repayment
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book.csv").write_text(TAPE)
    (tmp_path / "map.yaml").write_text(MAPPING)
    return tmp_path


def test_a_delivery_waits_for_no_network_and_no_orchestrator(book: Path) -> None:
    words = ["ingest", "book.csv", "--mapping", "map.yaml", "--data", "store"]
    script = (
        f"import sys; sys.argv[1:] = {words!r}\nfrom pc_pipeline.__main__ import main\ntry:\n    main()\n"
        "finally:\n    print([m for m in ('torch', 'dagster', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=book, check=True, capture_output=True, text=True, timeout=120
    )
    assert "delivery 000001-" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def pc(*words: object) -> str:
    """Output of a command that must succeed."""
    import typer
    from typer.testing import CliRunner

    from pc_pipeline.ingest_commands import add_ingest_commands

    app = typer.Typer()
    add_ingest_commands(app)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_check_looks_and_writes_nothing(book: Path) -> None:
    before = sorted(book.rglob("*"))
    said = pc(
        "ingest", book / "book.csv", "--mapping", book / "map.yaml", "--check", "--data", book / "store"
    )
    assert "3 rows in, 2 accepted" in said
    assert "1 rows quarantined" in said
    assert sorted(book.rglob("*")) == before


def test_ingest_stores_once_and_says_where_the_refused_lie(book: Path) -> None:
    words = ["ingest", book / "book.csv", "--mapping", book / "map.yaml", "--data", book / "store"]
    first = pc(*words, "--rejected", book / "out.csv")
    assert "pool 'book': new" in first
    assert f"next:       make run TAPE={book / 'book.csv'} MAPPING={book / 'map.yaml'}" in first
    refused = pl.read_csv(book / "out.csv")
    assert refused["row_number"].to_list() == [3]
    assert "-5" in refused["row_json"][0]
    assert list((book / "store" / "deliveries" / "book").glob("*/quarantine.parquet"))
    stored = sorted((book / "store").rglob("*"))
    assert "already known, nothing changed" in pc(*words)
    assert sorted((book / "store").rglob("*")) == stored


def test_history_lists_deliveries_by_as_of(book: Path) -> None:
    assert "nothing was delivered" in pc("history", "--data", book / "store")
    pc("ingest", book / "book.csv", "--mapping", book / "map.yaml", "--data", book / "store")
    assert "2023-02" in pc("history", "--data", book / "store")
    assert "by 2023-01" in pc("history", "--as-of", "2023-01", "--data", book / "store")


def test_a_drafted_mapping_is_written_once_and_can_be_read_back(book: Path) -> None:
    drafted = book / "draft.yaml"
    assert "read every line" in pc("map", book / "book.csv", "-o", drafted)
    assert pc("map", book / "book.csv") == drafted.read_text()
    with pytest.raises(ConfigError, match="there already"):
        pc("map", book / "book.csv", "-o", drafted)
    assert "# amortization_type: not found, but required" in drafted.read_text()
    mended = drafted.read_text() + "      amortization_type: Repayment\n"
    drafted.write_text(mended)
    assert read_tape(book / "book.csv", mapping=drafted).loans["loan_id"].to_list() == ["1001", "1002"]
