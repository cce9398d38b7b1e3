"""Adapter `sec_auto_xml`: SEC ABS-EE auto loans, EX-102 XML as filed, one file a month.

Here: reading the XML as a stream that no document can blow up, the filed-status rule. Not here: the meaning
of the tape's fields (`sec_auto`), which is the same.

**Filed status.** currentDelinquencyStatus is days past due: under 30 performing, then 30dpd, 60dpd, and 90dpd
from 90 days. The loan ends when its balance is zero: default where principal was charged off or the zero
balance code says so (4), or where less than half of the balance was paid; else prepaid, or matured from the
final contractual month on. chargedoffPrincipalAmount and proceeds carry either sign: a negative one reverses.

A folder holds one pool. A period filed twice counts once: the file later in name order replaces the first.
The tape is each loan's first filing. Document types, entities and external references are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import ParseError

import polars as pl
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest import sec_auto
from pc_pipeline.loans.ingest.adapter import Options, Tables, cast_columns, recoveries_table
from pc_pipeline.loans.ingest.files import Part, where
from pc_pipeline.loans.ingest.history import known_months, nothing_after_end, observed_panel
from pc_pipeline.loans.ingest.recency import WRITTEN_SHARE
from pc_pipeline.loans.ingest.rejoin import IS_TAPE
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.schemas.states import LoanState

FIELDS: Final[dict[str, Any]] = {
    **sec_auto.TAPE_COLUMNS,
    **sec_auto.OPTIONAL,
    "actualInterestCollectedAmount": pl.Float64,
    "chargedoffPrincipalAmount": pl.Float64,
    "recoveredAmount": pl.Float64,
    "repossessedProceedsAmount": pl.Float64,
    "zeroBalanceCode": pl.String,
}
MAX_TEXT: Final = 4_096
MAX_ASSETS: Final = 20_000_000
CHARGED_OFF: Final = "4"
_RECORD: Final = "assets"
_MONTH: Final = pl.col("reporting_month")


class SecAutoXml:
    """SEC auto loans, XML as filed."""

    name = "sec_auto_xml"
    rule = (
        "filed status: currentDelinquencyStatus in days, buckets of 30, 90 and more is 90dpd; balance zero "
        "ends the loan: default when charged off or paid less than half of it, else prepaid or matured"
    )
    expects = "EX-102 XML files: assetData of assets, with the fields of the tape of sec_auto"

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether all parts are XML and the first is EX-102 asset data."""
        return all(part.kind == "xml" for part in parts) and "assetData" in parts[0].head

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, panel and recoveries.

        Raises:
            IngestError: not well-formed, declares a document type, or holds no assets.
        """
        frames = []
        for order, part in enumerate(sorted(parts, key=lambda part: part.path.name)):
            file = where(part)
            frame = read_assets(part.path, log)
            frame = frame.with_columns(
                sec_auto.filed_month("reportingPeriodEndingDate").alias("reporting_month"),
                pl.col("assetNumber").str.strip_chars().alias("loan_id"),
                pl.lit(order).alias("_file"),
            )
            log.rows_in(file, frame, _MONTH)
            frames.append(frame)
        rows = _latest(pl.concat(frames), log, where(parts[0]))
        loans = sec_auto.auto_loans(
            rows.unique("loan_id", keep="first", maintain_order=True), log, where(parts[0])
        )
        kept = known_months(rows.drop("_file"), loans, log, where(parts[0]), options)
        kept = kept.with_columns(pl.lit(False).alias(IS_TAPE))
        return _tables(kept, loans.drop("_row"), log, where(parts[0]), options)

    def rejoin(self, filed: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> Tables:
        """Tables of the assets as filed in several deliveries, as if they had come in one."""
        return _tables(filed, loans, log, file, Options())


def _tables(filed: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str, options: Options) -> Tables:
    """Tables of assets as filed: one row a loan and month, sorted, all known by the as-of month."""
    stated, recoveries = _state(filed, loans, log, file)
    panel = observed_panel(stated, loans, log, file, options)
    living = panel.filter(pl.col("loan_state") == LoanState.default).select("loan_id")
    dated = recoveries.join(living, on="loan_id", how="semi", maintain_order="left")
    return Tables(loans=loans, panel=panel, recoveries=dated, filed=filed)


def read_assets(file: Path, log: QualityLog) -> pl.DataFrame:
    """The fields of `FIELDS` of every asset in one EX-102 file, typed; `_row` first.

    Raises:
        IngestError: see `SecAutoXml.read`.
    """
    names = set(FIELDS)
    columns: dict[str, list[str | None]] = {name: [] for name in FIELDS}
    for record in _records(file):
        for name in columns:
            columns[name].append(record.get(name))
    n = len(columns["assetNumber"])
    if n == 0:
        raise IngestError("the file holds no assets", expected=f"<{_RECORD}> elements", got=0, where=file)
    lacking = [name for name in sec_auto.TAPE_COLUMNS if all(value is None for value in columns[name])]
    if lacking:
        raise IngestError(
            "required fields are missing", expected=", ".join(lacking), got=sorted(names), where=file
        )
    text = pl.DataFrame(columns, schema=dict.fromkeys(FIELDS, pl.String)).with_row_index("_row", offset=1)
    text = text.with_columns(pl.col("_row").cast(pl.Int64))
    return cast_columns(text, FIELDS, log, file=file.name, table="loan_panel")


def _records(file: Path) -> Iterator[dict[str, str]]:
    """One dict of texts an asset, in constant memory."""
    try:
        events = iterparse(str(file), events=("start", "end"), forbid_dtd=True)
        _, root = next(events)
        record: dict[str, str] = {}
        depth, count = 1, 0
        for event, element in events:
            depth += 1 if event == "start" else -1
            if event == "start":
                if depth > 8:
                    raise IngestError(
                        "the XML is nested too deeply", expected="assetData of assets", where=file
                    )
                continue
            name = element.tag.rpartition("}")[2]
            if name == _RECORD:
                count += 1
                if count > MAX_ASSETS:
                    raise IngestError("too many assets", expected=MAX_ASSETS, where=file)
                yield record
                record = {}
                root.clear()
            elif name in FIELDS and element.text is not None:
                if len(element.text) > MAX_TEXT:
                    raise IngestError(
                        "a field is too long", expected=MAX_TEXT, got=len(element.text), where=file
                    )
                record[name] = element.text.strip()
    except DefusedXmlException as error:
        raise IngestError(
            "the XML declares a document type or entity",
            expected="plain EX-102 data",
            got=str(error),
            where=file,
        ) from None
    except (ParseError, StopIteration, UnicodeDecodeError, LookupError, ValueError) as error:
        raise IngestError("the XML is not well formed", got=str(error) or "nothing", where=file) from None


def _latest(rows: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """One row a loan and month, of a period filed twice the later file; sorted."""
    undated = rows.filter(_MONTH.is_null() | pl.col("loan_id").is_null())
    log.refuse(
        undated.select("_row", *sec_auto.TAPE_COLUMNS),
        file=file,
        table="loan_panel",
        column="reportingPeriodEndingDate",
        reason="asset number or period missing or unreadable",
    )
    good = rows.filter(_MONTH.is_not_null() & pl.col("loan_id").is_not_null())
    ordered = good.sort("loan_id", "reporting_month", "_file", maintain_order=True)
    last = ordered.unique(["loan_id", "reporting_month"], keep="last", maintain_order=True)
    log.count("refiled_rows_replaced", ordered.height - last.height)
    log.repair(
        file, "reportingPeriodEndingDate", ordered.height - last.height, "filed again: the later file counts"
    )
    return last


def _state(
    rows: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(observed months with loan_state, recoveries) by the filed status."""
    balance, charged = pl.col("reportingPeriodActualEndBalanceAmount"), pl.col("chargedoffPrincipalAmount")
    paid = pl.col("totalActualAmountPaid")
    before = pl.coalesce(balance.shift(1).over("loan_id"), "reportingPeriodBeginningLoanBalanceAmount")
    marked = rows.join(
        loans.select("loan_id", "maturity_date"), on="loan_id", how="left", maintain_order="left"
    )
    marked = marked.with_columns(before.alias("_before"))
    ended = (balance <= 0) & (pl.col("_before") > 0)
    lost = (
        (charged.fill_null(0.0) > 0)
        | (pl.col("zeroBalanceCode").fill_null("") == CHARGED_OFF)
        | (paid.fill_null(0.0) < WRITTEN_SHARE * pl.col("_before"))
    )
    days = pl.col("currentDelinquencyStatus").clip(0, 100_000).cast(pl.Int64)
    state = (
        pl.when(ended & lost)
        .then(int(LoanState.default))
        .when(ended & (pl.col("maturity_date") <= _MONTH))
        .then(int(LoanState.matured))
        .when(ended)
        .then(int(LoanState.prepaid))
        .otherwise((days // 30).clip(0, 3))
        .cast(pl.Int64)
    )
    stated = marked.with_columns(state.alias("loan_state"))
    proceeds = pl.col("recoveredAmount").fill_null(0.0) + pl.col("repossessedProceedsAmount").fill_null(0.0)
    is_default = pl.col("loan_state") == LoanState.default
    defaults = stated.filter(is_default).group_by("loan_id").agg(_MONTH.min().alias("default_month"))
    money = stated.with_columns(proceeds.alias("recovery_amount")).filter(pl.col("recovery_amount") != 0)
    dated = money.join(defaults, on="loan_id", how="inner", maintain_order="left").filter(
        pl.col("default_month") <= _MONTH
    )
    recoveries = recoveries_table(dated.with_columns(_MONTH.alias("recovery_month")))
    log.count("defaults", defaults.height)
    log.count("negative_charge_offs", stated.filter(charged < 0).height)
    log.count("negative_proceeds", money.filter(pl.col("recovery_amount") < 0).height)
    log.count("proceeds_without_default", money.height - dated.height)
    after = (is_default | (pl.col("loan_state") > 4)).cast(pl.Int64)
    seen = (after.cum_sum().over("loan_id") - after) > 0
    aftermath = stated.filter(seen)
    log.count("rows_after_end", aftermath.height)
    log.repair(
        file, "reportingPeriodActualEndBalanceAmount", aftermath.height, "after the end: proceeds only"
    )
    alive = stated.filter(~seen)
    unknown = alive.filter(pl.col("loan_state").is_null() | balance.is_null())
    log.refuse(
        unknown.select("_row", "loan_id", "reporting_month", "currentDelinquencyStatus", balance),
        file=file,
        table="loan_panel",
        column="currentDelinquencyStatus",
        reason="status or balance missing while the loan lives",
        month=_MONTH,
    )
    good = alive.join(
        unknown.select("loan_id", "reporting_month"), on=["loan_id", "reporting_month"], how="anti"
    )
    ultimate = recoveries.group_by("loan_id").agg(pl.col("recovery_amount").sum().alias("recovery"))
    observed = good.join(ultimate, on="loan_id", how="left", maintain_order="left").select(
        "_row",
        "loan_id",
        "reporting_month",
        balance.alias("filed_balance"),
        paid.alias("paid"),
        pl.col("reportingPeriodScheduledPaymentAmount").alias("scheduled"),
        pl.col("reportingPeriodBeginningLoanBalanceAmount").alias("opening_balance"),
        pl.col("actualPrincipalCollectedAmount").alias("principal"),
        "loan_state",
        pl.when(pl.col("loan_state") < LoanState.prepaid).then(days).otherwise(0).alias("days_past_due"),
        "recovery",
    )
    return nothing_after_end(observed.sort("loan_id", "reporting_month"), log, file), recoveries
