"""EX-102 XML as filed: a pool by hand over four files, a refiled one, and what no XML may do."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.store import Store
from pc_pipeline.loans.ingest import deliver, history, read_tape
from pc_pipeline_tests.loans.ingest_checks import assert_contract
from pc_pipeline_tests.shared_data import shared_path

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
SPACE = "http://www.sec.gov/edgar/document/absee/autoloan/assetdata"


def asset(number: str, month: int, **fields: object) -> str:
    row: dict[str, object] = {
        "assetTypeNumber": "Internal",
        "assetNumber": number,
        "reportingPeriodEndingDate": f"{month:02d}-28-2020",
        "originatorName": "BANK",
        "originationDate": "01/2020",
        "originalLoanAmount": "1200.00",
        "originalLoanTerm": "12",
        "loanMaturityDate": "01/2021",
        "originalInterestRatePercentage": "0.0",
        "vehicleNewUsedCode": "1",
        "vehicleValueAmount": "1500",
        "obligorCreditScore": "NONE" if number == "C" else "640",
        "reportingPeriodBeginningLoanBalanceAmount": "1200.00",
        "reportingPeriodScheduledPaymentAmount": "100.00",
        "totalActualAmountPaid": "100.00",
        "currentDelinquencyStatus": "0",
    } | fields
    return "<assets>" + "".join(f"<{name}>{value}</{name}>" for name, value in row.items()) + "</assets>"


def write(folder: Path, name: str, *assets: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'{HEAD}<assetData xmlns="{SPACE}">{"".join(assets)}</assetData>')


def test_a_pool_over_four_files(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    end = "reportingPeriodActualEndBalanceAmount"
    write(pool, "2020-02.xml", asset("A", 2, **{end: "1100.00"}), asset("C", 2, **{end: "1100.00"}))
    write(pool, "2020-03.xml", asset("A", 3, **{end: "1100.00", "currentDelinquencyStatus": "45"}))
    write(
        pool,
        "2020-03b.xml",
        asset("A", 3, **{end: "1100.00", "currentDelinquencyStatus": "31"}),
        asset("C", 3, **{end: "0", "totalActualAmountPaid": "1100.00"}),
    )
    gone = {end: "0", "chargedoffPrincipalAmount": "1100.00", "totalActualAmountPaid": "0"}
    write(
        pool,
        "2020-04.xml",
        asset("A", 4, **gone, currentDelinquencyStatus="61", repossessedProceedsAmount="700"),
    )
    write(pool, "2020-05.xml", asset("A", 5, **{end: "0", "repossessedProceedsAmount": "-50"}))
    result = read_tape(pool)
    assert_contract(result)
    assert result.adapter == "sec_auto_xml"
    panel = {loan: result.panel.filter(pl.col("loan_id") == loan) for loan in "AC"}
    assert panel["A"]["loan_state"].to_list() == [0, 1, 4]
    assert panel["A"]["days_past_due"].to_list() == [0, 31, 61]  # the amended 31, not 45
    assert result.loans["external_score_origination"].to_list() == [640.0, None]
    assert result.counts["unusable_scores"] == 1
    assert panel["C"]["loan_state"].to_list() == [0, 5]
    assert panel["A"]["charge_off_amount"][-1] == 1100.0
    assert panel["A"]["recovery_amount"][-1] == 650.0
    assert result.recoveries["recovery_amount"].to_list() == [700.0, -50.0]
    assert result.counts["refiled_rows_replaced"] == 1
    assert result.counts["rows_after_end"] == 1
    assert result.as_of == dt.date(2020, 4, 1)


def test_one_file_a_month_is_the_pool(tmp_path: Path) -> None:
    end = "reportingPeriodActualEndBalanceAmount"
    gone = {end: "0", "chargedoffPrincipalAmount": "1100.00", "totalActualAmountPaid": "0"}
    files = {
        "2020-02.xml": asset("A", 2, **{end: "1100.00"}),
        "2020-03.xml": asset("A", 3, **{end: "1100.00", "currentDelinquencyStatus": "31"}),
        "2020-04.xml": asset("A", 4, **gone, currentDelinquencyStatus="61", repossessedProceedsAmount="700"),
        "2020-05.xml": asset("A", 5, **{end: "0", "repossessedProceedsAmount": "-50"}),  # after its end
    }
    store = Store(tmp_path / "store")
    for name, text in files.items():
        write(tmp_path / "whole", name, text)
        write(tmp_path / name[:7], name, text)
        deliver(store, tmp_path / name[:7])
    whole, joined = read_tape(tmp_path / "whole"), history(store)
    assert joined.panel.equals(whole.panel)
    assert joined.recoveries.equals(whole.recoveries)
    assert joined.recoveries["recovery_amount"].to_list() == [700.0, -50.0]


def test_the_real_tape_written_as_xml_reads_the_same(tmp_path: Path) -> None:
    tape = pl.read_parquet(shared_path("data/sec_auto_aart2017/loans.parquet")).head(50)
    rows = tape.select(pl.all().exclude("deal").cast(pl.String)).iter_rows(named=True)
    body = "".join(
        "<assets>"
        + "".join(f"<{k}>{v.replace('&', '+')}</{k}>" for k, v in row.items() if v is not None)
        + "</assets>"
        for row in rows
    )
    (tmp_path / "ex102.xml").write_text(f'{HEAD}<assetData xmlns="{SPACE}">{body}</assetData>')
    result = read_tape(tmp_path / "ex102.xml")
    assert_contract(result)
    full = read_tape(shared_path("data/sec_auto_aart2017")).loans
    same = full.join(result.loans.select("loan_id"), on="loan_id", how="semi").sort("loan_id")
    drop = ["underwriting_standard_version"]
    assert result.loans.sort("loan_id").drop(drop).equals(same.drop(drop))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            f'{HEAD}<!DOCTYPE assetData [<!ENTITY x SYSTEM "file:///etc/passwd">]><assetData>&x;</assetData>',
            "entity",
        ),
        (
            f'{HEAD}<!DOCTYPE a [<!ENTITY a "aaaaa"><!ENTITY b "&a;&a;&a;">]><assetData>&b;</assetData>',
            "entity",
        ),
        (f"{HEAD}<assetData><assets><assetNumber>1", "not well formed"),
        (f"{HEAD}<assetData></assetData>", "no assets"),
        (f"{HEAD}<assetData>{'<a>' * 50}{'</a>' * 50}</assetData>", "nested too deeply"),
        (
            f"{HEAD}<assetData><assets><assetNumber>{'9' * 9000}</assetNumber></assets></assetData>",
            "too long",
        ),
        (f"{HEAD}<assetData><assets><assetNumber>1</assetNumber></assets></assetData>", "required fields"),
        ("<html>assetData</html>", "no assets"),
    ],
)
def test_hostile_or_broken_xml_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(IngestError, match=match):
        read_tape(tmp_path / "x.xml")
