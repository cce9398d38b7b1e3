"""Adapter `canonical`: tapes in our own columns, as CSV, Parquet or XLSX; a tape alone or tape and panel.

Here: which columns must be there, which are worked out and how, which rows are refused. Not here: other
people's columns (`mapping`, the other adapters). Rates are decimals, money is currency, months are dates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.ingest import ledger
from pc_pipeline.loans.ingest.adapter import (
    Options,
    Tables,
    check_ids,
    empty,
    read_typed,
    recoveries_table,
    table_types,
)
from pc_pipeline.loans.ingest.files import Part, read_part, where
from pc_pipeline.loans.ingest.history import count_rises, in_order, nothing_after_end
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.loans.ingest.screen import Rule, contract_rules, known_by, panel_rules, screen, tape_rules
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.tables import CENT, columns

LOAN_REQUIRED: Final = (
    "loan_id",
    "origination_date",
    "original_balance",
    "interest_rate",
    "amortization_type",
    "asset_class",
)
PANEL_REQUIRED: Final = ("loan_id", "reporting_month", "loan_state", "outstanding_balance")
_CASH: Final = (
    "scheduled_payment",
    "actual_payment",
    "interest_paid",
    "principal_paid",
    "prepayment_amount",
    "charge_off_amount",
    "recovery_amount",
    "loss_amount",
)
_OURS: Final = ("scenario", "macro_path_id", "month_end_weekday")  # always worked out, never read
_FACTS: Final = ("asset_class", "vintage_month", "original_balance")  # of the tape, on every row of the panel
_AGREES: Final = (
    Rule(
        column="asset_class",
        reason="differs from the tape",
        good=pl.col("asset_class") == pl.col("_asset_class"),
    ),
    Rule(
        column="vintage_month",
        reason="differs from the tape",
        good=pl.col("vintage_month") == pl.col("_vintage_month"),
    ),
    Rule(
        column="original_balance",
        reason="differs from the tape",
        good=(pl.col("original_balance") - pl.col("_original_balance")).abs() <= CENT,
    ),
)
_CORE: Final = ("actual_payment", "interest_paid", "principal_paid", "charge_off_amount")
_BORROWER: Final = {
    "corporate": "corporate",
    "consumer": "consumer",
    "realestate": "corporate",
    "receivables": "sme",
}


class Canonical:
    """Tapes in our own columns."""

    name = "canonical"
    rule = "filed state: loan_state 0-6 is taken as delivered"
    expects = (
        f"loans with {', '.join(LOAN_REQUIRED)} and term_months or maturity_date; "
        f"if there is history, panel with {', '.join(PANEL_REQUIRED)}"
    )

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether some part looks like a tape: an id and most required columns."""
        return any(
            "loan_id" in part.columns
            and len(set(LOAN_REQUIRED) & set(part.columns)) >= 4
            and not _is_panel(part)
            for part in parts
        )

    def read(self, parts: Sequence[Part], log: QualityLog, options: Options) -> Tables:
        """Tape, panel and recoveries.

        Raises:
            IngestError: a required column is missing, wrong types, more than one tape or panel.
        """
        tape = _one(parts, [part for part in parts if _is_tape(part)], "tape", LOAN_REQUIRED)
        loans = read_loans(tape, log)
        panels = [part for part in parts if _is_panel(part)]
        if not panels:
            return Tables(loans=loans, panel=empty("loan_panel"), recoveries=empty("recoveries"))
        panel = read_panel(_one(parts, panels, "panel", PANEL_REQUIRED), loans, log, options)
        return Tables(loans=loans, panel=panel, recoveries=_read_recoveries(parts, panel, log))


def read_loans(part: Part, log: QualityLog) -> pl.DataFrame:
    """Table loan_tape from one part."""
    _require(part, LOAN_REQUIRED)
    if not {"term_months", "maturity_date"} & set(part.columns):
        raise IngestError(
            "a required column is missing",
            expected="term_months or maturity_date",
            got=part.columns,
            where=where(part),
        )
    frame = read_typed(part, table_types("loan_tape"), log, "loan_tape")
    file = where(part)
    check_ids(frame, "loan_id", file)
    log.rows_in(file, frame)
    _note_ignored(part, "loan_tape", log)
    return screen_loans(derive_loans(frame, log, file), log, file).drop("_row")


def screen_loans(frame: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """The loans that keep the tape's contract; `_row` stays."""
    rules = [*contract_rules("loan_tape", frame.columns), *tape_rules()]
    good = screen(frame, rules, log, file=file, table="loan_tape")
    return good.select("_row", *columns("loan_tape"))


def derive_loans(frame: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Fill columns that follow from others, and say so; nullable columns that are missing become null."""
    have = set(frame.columns)
    types = table_types("loan_tape")
    start = pl.col("origination_date")
    made: dict[str, tuple[pl.Expr, str]] = {
        "vintage_month": (start.dt.month_start(), "derived: the month of origination"),
        "payment_frequency": (pl.lit("monthly"), "assumed: monthly"),
        "borrower_type": (
            pl.col("asset_class").replace_strict(_BORROWER, default="corporate", return_dtype=pl.String),
            "derived from the asset class",
        ),
    }
    if "term_months" in have:
        made["maturity_date"] = (
            start.dt.month_start().dt.offset_by(pl.format("{}mo", pl.col("term_months").clip(-1200, 1200))),
            "derived: origination plus term",
        )
    else:
        ends = frame.with_columns(start.alias("_o"), pl.col("maturity_date").alias("_m"))
        frame = ends.with_columns(
            (month_index_expr("_m") - month_index_expr("_o")).cast(pl.Int64).alias("term_months")
        ).drop("_o", "_m")
        log.note(file, "term_months", "derived: months from origination to maturity")
    floats = [pl.col(name).is_not_null() for name in ("spread_bps", "benchmark") if name in have]
    made["rate_type"] = (
        pl.when(pl.any_horizontal(floats)).then(pl.lit("floating")).otherwise(pl.lit("fixed"))
        if floats
        else pl.lit("fixed"),
        "derived: floating where a spread or benchmark is given",
    )
    value, ratio = "collateral_value_origination", "ltv_origination"
    if value in have and ratio not in have:
        made[ratio] = (
            pl.when(pl.col(value) > 0).then(pl.col("original_balance") / pl.col(value)),
            "derived: original balance over collateral value",
        )
    if ratio in have and value not in have:
        made[value] = (
            pl.when(pl.col(ratio) > 0).then(pl.col("original_balance") / pl.col(ratio)),
            "derived: original balance over loan to value",
        )
    for name, dtype in types.items():
        if name in frame.columns:
            continue
        expression, how = made.get(name, (pl.lit(None), "not delivered: null"))
        frame = frame.with_columns(expression.cast(dtype).alias(name))
        log.note(file, name, how)
    day = pl.col("maturity_date")
    moved = frame.select((day != day.dt.month_start()).sum()).item() or 0
    log.repair(file, "maturity_date", moved, "moved to the first of its month")
    return frame.with_columns(day.dt.month_start())


def read_panel(part: Part, loans: pl.DataFrame, log: QualityLog, options: Options) -> pl.DataFrame:
    """Table loan_panel from one part; rows of refused loans go with them."""
    _require(part, PANEL_REQUIRED)
    file = where(part)
    month = pl.col("reporting_month")
    read = {name: kind for name, kind in table_types("loan_panel").items() if name not in _OURS}
    frame = read_typed(part, read, log, "loan_panel")
    check_ids(frame.head(10_000), "loan_id", file)
    moved = frame.select((month.dt.day() != 1).sum()).item() or 0
    if moved:
        log.repair(file, "reporting_month", moved, "moved to the first of its month")
        frame = frame.with_columns(month.dt.month_start())
    log.rows_in(file, frame, month)
    _note_ignored(part, "loan_panel", log)
    frame = _known_loans(frame, loans, log, file)
    n_before = frame.height
    frame = in_order(frame, log, file)
    if frame.height < n_before:
        _one_history(part)
    frame = _derive_panel(frame, loans, log, file)
    # the id is known to the tape and the scenario is ours: their rules have been applied
    judged = [name for name in frame.columns if name not in ("loan_id", "scenario")]
    rules = [*contract_rules("loan_panel", judged), *panel_rules(), *_AGREES]
    if options.as_of is not None:
        rules.append(known_by(options.as_of))
    keep = ["_row", *columns("loan_panel")]
    good = screen(frame, rules, log, file=file, table="loan_panel", month=month, keep=keep)
    good = nothing_after_end(good, log, file)
    _count_identity(good, log, file)
    return good.select(columns("loan_panel"))


def _one_history(part: Part) -> None:
    """Doubled loan-months may be several simulated histories in one file.

    Raises:
        IngestError: they are.
    """
    keys = [name for name in ("scenario", "macro_path_id") if name in part.columns]
    frame = read_part(part, columns=keys).drop("_row") if keys else pl.DataFrame()
    if any(frame[name].n_unique() > 1 for name in frame.columns):
        raise IngestError(
            "a delivery is one history",
            expected="one scenario and macro path",
            got="several",
            where=where(part),
        )


def _known_loans(frame: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Bring the tape's facts to each row; rows whose loan is not on the good tape are refused.

    A panel that lists whole loans one after the other is joined by its runs of rows, not row by row.
    """
    facts = loans.select("loan_id", *(pl.col(name).alias(f"_{name}") for name in _FACTS))
    run = frame.select((pl.col("loan_id") != pl.col("loan_id").shift(1)).fill_null(True)).to_series()
    place = run.cum_sum() - 1
    heads = frame.select("loan_id").filter(run).join(facts, on="loan_id", how="left", maintain_order="left")
    lost = heads["_original_balance"].null_count()
    joined = frame.with_columns(heads[f"_{name}"].gather(place) for name in _FACTS)
    if lost:
        stray = pl.col("_original_balance").is_null()
        log.refuse(
            joined.filter(stray).drop([f"_{name}" for name in _FACTS]),
            file=file,
            table="loan_panel",
            column="loan_id",
            reason="its loan is not on the tape, or was refused there",
            month=pl.col("reporting_month"),
        )
        joined = joined.filter(~stray)
    if joined.is_empty():
        raise IngestError(
            "no row of the panel belongs to a loan of the tape", got=frame["loan_id"][0], where=file
        )
    return joined


def _derive_panel(frame: pl.DataFrame, loans: pl.DataFrame, log: QualityLog, file: str) -> pl.DataFrame:
    """Fill columns that follow from others, and say so."""
    have = set(frame.columns)
    for name in _FACTS:
        if name not in have:
            frame = frame.with_columns(pl.col(f"_{name}").alias(name))
            log.note(file, name, "derived: from the tape")
    missing_cash = [name for name in _CASH if name not in have]
    if missing_cash:
        frame = _cash_from_ledger(frame, loans, missing_cash, log, file)
    state = pl.col("loan_state")
    made = {
        "days_past_due": (ledger.days_from_state(state.clip(0, 6)), "derived: 30 days a bucket"),
        "months_in_state": (
            ledger.months_in_state(state),
            "derived: consecutive months delivered in the state",
        ),
    }
    for name, (expression, how) in made.items():
        if name not in frame.columns:
            frame = frame.with_columns(expression.alias(name))
            log.note(file, name, how)
    extra = [name for name in frame.columns if name.startswith("_")]
    finished = ledger.finish_panel(frame)
    return pl.concat([frame.select(extra), finished], how="horizontal")


def _cash_from_ledger(
    frame: pl.DataFrame, loans: pl.DataFrame, missing: Sequence[str], log: QualityLog, file: str
) -> pl.DataFrame:
    """Missing cash columns worked out from balances and whatever cash was delivered.

    Where principal, interest, payment or charge-off is missing the four come from the ledger together, and
    the balance with them.
    """
    present = [name for name in table_types("loan_panel") if name in frame.columns]
    rules = [rule for rule in panel_rules() if rule.column in ("reporting_month", "outstanding_balance")]
    month = pl.col("reporting_month")
    clean = screen(
        frame,
        [*contract_rules("loan_panel", present), *rules],
        log,
        file=file,
        table="loan_panel",
        month=month,
    )
    clean = nothing_after_end(clean, log, file)

    def given(name: str) -> pl.Expr:
        return pl.col(name) if name in clean.columns else pl.lit(None, pl.Float64)

    observed = clean.select(
        "loan_id",
        "reporting_month",
        pl.col("outstanding_balance").alias("filed_balance"),
        given("actual_payment").alias("paid"),
        given("scheduled_payment").alias("scheduled"),
        "loan_state",
        given("recovery_amount").alias("recovery"),
    )
    built = ledger.build_panel(observed, loans)
    taken = list(missing)
    if set(_CORE) & set(missing):
        count_rises(observed, log, file)
        taken = list(dict.fromkeys([*missing, *_CORE, "loss_amount", "outstanding_balance"]))
    elif "loss_amount" in missing:
        loss = pl.col("charge_off_amount") - (
            given("recovery_amount") if "recovery_amount" in present else 0.0
        )
        built = built.with_columns(clean.select(loss.round(2).alias("loss_amount")))
    for name in missing:
        log.note(file, name, "derived: the ledger of balances")
    return clean.with_columns(built.select(taken))


def _count_identity(panel: pl.DataFrame, log: QualityLog, file: str) -> None:
    """Count rows that break: balance before (first row: original) - principal - charge-off = balance."""
    loan, month = pl.col("loan_id"), pl.col("reporting_month")
    first = (loan != loan.shift(1)).fill_null(True)
    gone = pl.col("principal_paid") + pl.col("charge_off_amount")
    before = pl.when(first).then(pl.col("original_balance")).otherwise(pl.col("outstanding_balance").shift(1))
    broken = panel.select((before - gone - pl.col("outstanding_balance")).abs() > 0.01).to_series()
    if broken.any():
        apart = (month - month.shift(1)).dt.total_days() > 31  # a month is missing, or was refused
        broken &= panel.select(first | ~apart).to_series()
    n = int(broken.sum() or 0)
    log.count("cash_identity_breaks", n)
    if n:
        log.note(file, "principal_paid", f"cash identity broken on {n} rows, taken as delivered")


def _read_recoveries(parts: Sequence[Part], panel: pl.DataFrame, log: QualityLog) -> pl.DataFrame:
    """Dated recoveries as delivered; else the ultimate recovery on its default row, dated there."""
    found = [part for part in parts if part.has(("loan_id", "recovery_month", "recovery_amount"))]
    if not found:
        rows = panel.filter((pl.col("loan_state") == LoanState.default) & (pl.col("recovery_amount") > 0))
        return recoveries_table(
            rows.select(
                "loan_id",
                pl.col("reporting_month").alias("default_month"),
                pl.col("reporting_month").alias("recovery_month"),
                "recovery_amount",
            )
        )
    part = _one(parts, found, "table of recoveries", ("loan_id", "recovery_month", "recovery_amount"))
    file = where(part)
    frame = read_typed(part, table_types("recoveries"), log, "recoveries")
    log.rows_in(file, frame, pl.col("recovery_month"))
    defaults = panel.filter(pl.col("loan_state") == LoanState.default).select(
        "loan_id", pl.col("reporting_month").alias("default_month")
    )
    joined = frame.drop("default_month", strict=False).join(
        defaults, on="loan_id", how="left", maintain_order="left"
    )
    stray = joined.filter(pl.col("default_month").is_null())
    log.refuse(
        stray, file=file, table="recoveries", column="loan_id", reason="no default of this loan in the panel"
    )
    kept = joined.filter(pl.col("default_month").is_not_null())
    good = screen(kept, contract_rules("recoveries", kept.columns), log, file=file, table="recoveries")
    return recoveries_table(good)


def _is_panel(part: Part) -> bool:
    return part.has(("loan_id", "reporting_month")) and "recovery_month" not in part.columns


def _is_tape(part: Part) -> bool:
    shared = len(set(LOAN_REQUIRED) & set(part.columns))
    return (
        "loan_id" in part.columns
        and not _is_panel(part)
        and "recovery_month" not in part.columns
        and shared >= 2
    )


def _one(parts: Sequence[Part], found: Sequence[Part], what: str, needed: Sequence[str]) -> Part:
    if len(found) == 1:
        return found[0]
    raise IngestError(
        f"the delivery holds {'no' if not found else 'more than one'} {what}",
        expected=f"one file with {', '.join(needed)}",
        got="; ".join(f"{where(part)}: {', '.join(part.columns[:8])}" for part in (found or parts)[:5]),
        where=parts[0].path.parent,
    )


def _require(part: Part, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in part.columns]
    if missing:
        raise IngestError(
            "a required column is missing",
            expected=", ".join(missing),
            got=", ".join(part.columns[:40]),
            where=where(part),
        )


def _note_ignored(part: Part, table: str, log: QualityLog) -> None:
    for name in part.columns:
        if name and name not in table_types(table):
            log.note(where(part), name, "ignored: no such column in our tables")
