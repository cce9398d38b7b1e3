"""SEC auto loans: the recency rule on a loan that one can follow by hand, and on the real pool."""

from __future__ import annotations

import datetime as dt
import itertools
import shutil
from pathlib import Path

import polars as pl
import pytest

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.store import Store
from pc_pipeline.engines.stages import land
from pc_pipeline.loans.ingest import IngestResult, deliver, history, read_tape, recognise
from pc_pipeline_tests.loans.ingest_checks import assert_contract, moves, percent
from pc_pipeline_tests.shared_data import shared_path

PUBLISHED = {  # percent of the row, README of the data set
    (0, 0): 90.44,
    (0, 1): 8.01,
    (0, 4): 0.00,
    (0, 5): 1.55,
    (1, 0): 84.04,
    (1, 2): 13.74,
    (1, 4): 0.00,
    (1, 5): 2.22,
    (2, 0): 53.93,
    (2, 3): 42.20,
    (2, 4): 0.87,
    (2, 5): 3.00,
    (3, 0): 20.22,
    (3, 3): 70.28,
    (3, 4): 7.15,
    (3, 5): 2.35,
}


def write_pool(folder: Path, months: list[tuple[float | None, float | None, float, float]]) -> Path:
    """One loan of 1,200 over 12 months at 0 %, level payment 100, 200 paid by the cut-off; then `months`.

    Each month is (end balance, paid, principal, repossession proceeds).
    """
    folder.mkdir(exist_ok=True)
    pl.DataFrame(
        {
            "assetNumber": [7],
            "reportingPeriodEndingDate": ["03-31-2020"],
            "originationDate": ["01/2020"],
            "loanMaturityDate": ["01/2021"],
            "originalLoanAmount": [1200.0],
            "originalLoanTerm": [12],
            "originalInterestRatePercentage": [0.0],
            "reportingPeriodBeginningLoanBalanceAmount": [1100.0],
            "reportingPeriodActualEndBalanceAmount": [1000.0],
            "totalActualAmountPaid": [100.0],
            "vehicleValueAmount": [1000.0],
            "vehicleNewUsedCode": [2],
            "obligorCreditScore": [700],
            "obligorGeographicLocation": ["TX"],
        }
    ).write_parquet(folder / "loans.parquet")
    n = len(months)
    pl.DataFrame(
        {
            "asset_number": [7] * n,
            "period_end": [
                (dt.date(2020, 4, 1) + dt.timedelta(days=31 * k)).replace(day=28) for k in range(n)
            ],
            "end_balance": [m[0] for m in months],
            "principal_collected": [m[2] for m in months],
            "total_paid": [m[1] for m in months],
            "recovered": [None] * n,
            "repossession_proceeds": [m[3] for m in months],
        },
        schema_overrides={"recovered": pl.Float64, "end_balance": pl.Float64, "total_paid": pl.Float64},
    ).write_parquet(folder / "panel.parquet")
    return folder


def test_a_loan_that_misses_cures_and_defaults(tmp_path: Path) -> None:
    pool = write_pool(
        tmp_path / "pool",
        [
            (900.0, 100.0, 100.0, 0.0),  # paid
            (900.0, 49.0, 0.0, 0.0),  # under half the instalment: missed
            (900.0, 0.0, 0.0, 0.0),  # missed
            (700.0, 200.0, 200.0, 0.0),  # cured
            (750.0, 0.0, 0.0, 0.0),  # balance rises, missed
            (0.0, 30.0, 0.0, 500.0),  # written to zero without half of it: default
            (None, None, 0.0, -80.0),  # an estimate reversed
        ],
    )
    result = read_tape(pool)
    assert_contract(result)
    panel = result.panel
    assert panel["loan_state"].to_list() == [0, 0, 1, 2, 0, 1, 4]
    assert panel["days_past_due"].to_list() == [0, 0, 30, 60, 0, 30, 60]
    assert panel["outstanding_balance"].to_list() == [1000.0, 900.0, 900.0, 900.0, 700.0, 700.0, 0.0]
    assert panel["principal_paid"].to_list() == [200.0, 100.0, 0.0, 0.0, 200.0, 0.0, 0.0]
    assert panel["scheduled_payment"].to_list() == [0.0] + [100.0] * 6  # nothing is due on the opening row
    assert panel["actual_payment"].to_list() == [200.0, 100.0, 49.0, 0.0, 200.0, 0.0, 30.0]
    assert panel["charge_off_amount"].to_list()[-1] == 700.0
    assert panel["recovery_amount"].to_list()[-1] == 420.0
    assert panel["loss_amount"].to_list()[-1] == 280.0
    assert result.recoveries["recovery_amount"].to_list() == [500.0, -80.0]
    assert result.counts["rising_balances"] == 1


@pytest.mark.parametrize(("paid", "state"), [(899.0, 5), (450.0, 5), (449.99, 4)])
def test_zero_balance_is_default_below_half(tmp_path: Path, paid: float, state: int) -> None:
    pool = write_pool(tmp_path / "pool", [(900.0, 100.0, 100.0, 0.0), (0.0, paid, 0.0, 0.0)])
    assert read_tape(pool).panel["loan_state"].to_list() == [0, 0, state]


def test_a_payoff_in_the_final_month_is_maturity(tmp_path: Path) -> None:
    months = [(1000.0 - 100.0 * k, 100.0, 100.0, 0.0) for k in range(1, 11)]
    result = read_tape(write_pool(tmp_path / "pool", months))
    assert result.panel["loan_state"].to_list() == [0] * 10 + [6]
    assert result.panel["prepayment_amount"].sum() == 0.0


SLICED = [
    (900.0, 100.0, 100.0, 0.0),
    (900.0, 49.0, 0.0, 0.0),  # missed; the first slice ends here
    (900.0, 0.0, 0.0, 0.0),  # missed: 60, not 30
    (700.0, 200.0, 200.0, 0.0),
    (750.0, 0.0, 0.0, 0.0),  # missed; the second slice ends here
    (700.0, 30.0, 0.0, 0.0),  # missed: 60
    (0.0, 30.0, 0.0, 500.0),  # default
    (None, None, 0.0, -80.0),  # after its end
]


def write_slice(folder: Path, first: int, last: int, cut_off: bool = False) -> Path:
    """Months `first` to `last` (1 is April 2020) of SLICED; the tape as of the month before, if `cut_off`."""
    write_pool(folder, SLICED)
    months = pl.read_parquet(folder / "panel.parquet")
    months.slice(first - 1, last - first + 1).write_parquet(folder / "panel.parquet")
    if cut_off and first > 1:
        balance, paid, _, _ = SLICED[first - 2]
        before = SLICED[first - 3][0] if first > 2 else 1000.0
        pl.read_parquet(folder / "loans.parquet").with_columns(
            pl.lit(f"{first + 2:02d}-28-2020").alias("reportingPeriodEndingDate"),
            pl.lit(before).alias("reportingPeriodBeginningLoanBalanceAmount"),
            pl.lit(balance).alias("reportingPeriodActualEndBalanceAmount"),
            pl.lit(paid).alias("totalActualAmountPaid"),
        ).write_parquet(folder / "loans.parquet")
    return folder


@pytest.mark.parametrize("cut_off", [False, True], ids=["one tape", "a tape as of each slice"])
def test_a_pool_in_three_slices_lands_as_the_whole(tmp_path: Path, cut_off: bool) -> None:
    whole, sliced = Store(tmp_path / "whole"), Store(tmp_path / "sliced")
    land(whole, str(write_slice(tmp_path / "all", 1, 8)))
    for number, (first, last) in enumerate([(1, 2), (3, 5), (6, 8)]):
        result = land(sliced, str(write_slice(tmp_path / f"s{number}", first, last, cut_off)), pool="auto")
    assert_contract(result)
    assert result.panel["loan_state"].to_list() == [0, 0, 1, 2, 0, 1, 2, 4]
    assert result.panel["days_past_due"].to_list() == [0, 0, 30, 60, 0, 30, 60, 90]
    assert result.quarantine.is_empty()
    for table in ("landing_panel", "landing_recoveries"):
        assert sliced.read_table(table).equals(whole.read_table(table))
    then = history(sliced, "auto", as_of="2020-08").panel  # the second slice ends in August
    assert then.equals(
        whole.read_table("landing_panel").filter(pl.col("reporting_month") <= dt.date(2020, 8, 1))
    )


def test_a_restated_month_changes_the_states_after_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for number, (first, last) in enumerate([(1, 2), (3, 5), (6, 8)]):
        deliver(store, write_slice(tmp_path / f"s{number}", first, last))
    folder = write_slice(tmp_path / "again", 2, 2)
    months = pl.read_parquet(folder / "panel.parquet").with_columns(pl.lit(100.0).alias("total_paid"))
    months.write_parquet(folder / "panel.parquet")
    before = history(store).panel
    deliver(store, folder, as_of="2020-11")
    assert history(store, as_of="2020-10").panel.equals(before)
    after = history(store).panel
    assert after["loan_state"].to_list() == [0, 0, 0, 1, 0, 1, 2, 4]  # May was paid: June is the first miss


def test_rounded_identifiers_are_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", [(900.0, 100.0, 100.0, 0.0)])
    months = pl.read_parquet(pool / "panel.parquet").with_columns(pl.col("asset_number").cast(pl.Float64))
    months.write_parquet(pool / "panel.parquet")
    with pytest.raises(IngestError, match="rounded to floating-point"):
        read_tape(pool)


@pytest.fixture(scope="module")
def result() -> IngestResult:
    return read_tape(shared_path("data/sec_auto_aart2017"))


class TestRealPool:
    def test_contract_and_cash(self, result: IngestResult) -> None:
        assert_contract(result)
        assert recognise(shared_path("data/sec_auto_aart2017")) == "sec_auto"
        assert result.as_of == dt.date(2019, 12, 1)

    def test_published_matrix(self, result: IngestResult) -> None:
        counted = moves(result.panel)
        assert percent(result.panel) == {key: value for key, value in PUBLISHED.items() if value}
        assert sum(n for (_, b), n in counted.items() if b == 4) == 77
        assert sum(n for (_, b), n in counted.items() if b == 5) == 1363

    def test_published_default_rates_by_year(self, result: IngestResult) -> None:
        """Basis points of loan-months after each loan's first, which is no move."""
        later = result.panel.filter(pl.col("loan_id") == pl.col("loan_id").shift(1))
        is_default = pl.col("loan_state") == 4
        rate = later.group_by(pl.col("reporting_month").dt.year()).agg(10_000 * is_default.mean())
        assert dict(rate.iter_rows()) == pytest.approx({2017: 4.8, 2018: 10.1, 2019: 11.7}, abs=0.06)

    def test_nothing_is_lost(self, result: IngestResult) -> None:
        opening = result.loans.height
        counts = result.counts
        assert result.panel.height == 84_361 + opening - counts["rows_after_end"] - counts["missing_balances"]
        assert counts["missing_balances"] == result.quarantine.height
        whole = result.quality.filter((pl.col("column") == "*") & pl.col("month").is_null())
        assert whole["rows_in"].sum() == 84_361 + opening
        assert counts["defaults_with_negative_net_recovery"] == 27
        assert counts["loans_without_history"] == 59

    def test_in_three_slices_it_is_the_same(self, result: IngestResult, tmp_path: Path) -> None:
        source, store = shared_path("data/sec_auto_aart2017"), Store(tmp_path / "store")
        months = pl.read_parquet(source / "panel.parquet")
        edges = [dt.date(2017, 1, 1), dt.date(2018, 4, 1), dt.date(2019, 2, 1), dt.date(2020, 1, 1)]
        for first, last in itertools.pairwise(edges):
            folder = tmp_path / f"auto_{first:%Y-%m}"
            folder.mkdir()
            shutil.copy(source / "loans.parquet", folder)
            kept = months.filter((pl.col("period_end") >= first) & (pl.col("period_end") < last))
            kept.write_parquet(folder / "panel.parquet")
            deliver(store, folder)
        joined = history(store)
        assert joined.panel.equals(result.panel)
        assert joined.recoveries.equals(result.recoveries)

    def test_as_of_cuts_what_was_not_yet_known(self, result: IngestResult) -> None:
        early = read_tape(shared_path("data/sec_auto_aart2017"), as_of="2018-06")
        assert early.as_of == dt.date(2018, 6, 1)
        same = result.panel.filter(pl.col("reporting_month") <= dt.date(2018, 6, 1))
        known = ["recovery_amount", "loss_amount"]  # recoveries that came later
        assert early.panel.drop(known).equals(same.drop(known))
