"""Which rows are good: the table's own contract and the plausibility of a loan, as expressions.

Here: rules from the Pandera models (`contract_rules`), rules no single column can hold, and `screen`,
which keeps the good rows and quarantines each bad one with its first breach. Not here: the contract
itself (`schemas.tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import polars as pl

from pc_pipeline.core.errors import IngestError
from pc_pipeline.loans.ingest.result import QualityLog
from pc_pipeline.schemas.tables import CENT, TABLES

EARLIEST: Final = date(1950, 1, 1)
LATEST: Final = date(2150, 1, 1)
BALANCE_TOLERANCE: Final = (
    0.01  # a balance may stand this share above the original: fees, capitalised interest
)
_FORMULA: Final = r"^[=@\t\r]|^[+\-].*[(|!]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing a row must satisfy.

    Attributes:
        column: column at fault when it does not.
        reason: what was expected, in words.
        good: boolean expression; null counts as a breach.
    """

    column: str
    reason: str
    good: pl.Expr


def contract_rules(table: str, columns: Sequence[str]) -> list[Rule]:
    """The column rules of a table's Pandera model, for the columns given."""
    rules: list[Rule] = []
    for name, column in TABLES[table].to_schema().columns.items():
        if name not in columns:
            continue
        value = pl.col(name)
        is_null = value.is_null() if column.nullable else pl.lit(False)
        if not column.nullable:
            rules.append(Rule(column=name, reason="a value is required", good=value.is_not_null()))
        if str(column.dtype) == "Float64":
            rules.append(
                Rule(column=name, reason="expected a finite number", good=is_null | value.is_finite())
            )
        if str(column.dtype) == "String":
            rules.append(
                Rule(
                    column=name,
                    reason="text that a spreadsheet would run as a formula",
                    good=is_null | ~value.str.contains(_FORMULA),
                )
            )
        if str(column.dtype) == "Date":
            rules.append(
                Rule(
                    column=name,
                    reason=f"expected a date from {EARLIEST} to {LATEST}",
                    good=is_null | value.is_between(EARLIEST, LATEST),
                )
            )
        for check in column.checks:
            reason, good = _as_expression(check.name, check.statistics, value)
            rules.append(Rule(column=name, reason=reason, good=is_null | good))
    return rules


def _as_expression(name: str, bounds: dict[str, Any], value: pl.Expr) -> tuple[str, pl.Expr]:
    if name == "greater_than_or_equal_to":
        return f"expected at least {bounds['min_value']}", value >= bounds["min_value"]
    if name == "greater_than":
        return f"expected more than {bounds['min_value']}", value > bounds["min_value"]
    if name == "less_than_or_equal_to":
        return f"expected at most {bounds['max_value']}", value <= bounds["max_value"]
    if name == "isin":
        allowed = list(bounds["allowed_values"])
        return f"expected one of {', '.join(map(str, allowed))}", value.is_in(allowed)
    if name == "str_length":
        low, high = bounds["min_value"], bounds["max_value"]
        return f"expected {low} to {high} characters", value.str.len_chars().is_between(low, high)
    raise IngestError("a table rule that ingest does not know", expected="range, choice or length", got=name)


def tape_rules() -> list[Rule]:
    """What the columns of one loan must say together."""
    return [
        Rule(
            column="maturity_date",
            reason="dates out of order: expected maturity after origination",
            good=pl.col("maturity_date") > pl.col("origination_date"),
        ),
        Rule(
            column="vintage_month",
            reason="expected the month of origination",
            good=pl.col("vintage_month") == pl.col("origination_date").dt.month_start(),
        ),
        Rule(column="loan_id", reason="duplicate loan", good=pl.col("loan_id").is_first_distinct()),
    ]


def panel_rules() -> list[Rule]:
    """What the columns of one loan-month must say together."""
    terminal = pl.col("loan_state") >= 4
    limit = pl.col("original_balance") * (1 + BALANCE_TOLERANCE) + 1.0
    gap = pl.col("charge_off_amount") - pl.col("recovery_amount") - pl.col("loss_amount")
    return [
        Rule(
            column="reporting_month",
            reason="dates out of order: reported before the loan existed",
            good=pl.col("reporting_month") >= pl.col("vintage_month"),
        ),
        Rule(
            column="outstanding_balance",
            reason=f"impossible balance: more than {BALANCE_TOLERANCE:.0%} above the original",
            good=pl.col("outstanding_balance") <= limit,
        ),
        Rule(
            column="outstanding_balance",
            reason="a loan that ended still has a balance",
            good=~terminal | (pl.col("outstanding_balance") < CENT),
        ),
        Rule(
            column="charge_off_amount",
            reason="a charge-off on a row that is not the default",
            good=(pl.col("charge_off_amount") < CENT) | (pl.col("loan_state") == 4),
        ),
        Rule(
            column="loss_amount",
            reason="expected charge-off less recovery",
            good=gap.abs() < CENT,
        ),
    ]


def known_by(as_of: date) -> Rule:
    """Nothing is reported for a month after the as-of month."""
    return Rule(
        column="reporting_month",
        reason=f"reported after the as-of month {as_of}",
        good=pl.col("reporting_month") <= pl.lit(as_of),
    )


def screen(
    frame: pl.DataFrame,
    rules: Sequence[Rule],
    log: QualityLog,
    *,
    file: str,
    table: str,
    month: pl.Expr | None = None,
    keep: Sequence[str] | None = None,
) -> pl.DataFrame:
    """The rows that keep every rule; the others go to the log's quarantine with their first breach.

    Args:
        keep: columns to return; all when None.
    """
    kept_columns = list(frame.columns if keep is None else keep)
    if frame.is_empty() or not rules:
        return frame.select(kept_columns)
    kept = frame.lazy().select(
        rule.good.fill_null(False).all().alias(str(number)) for number, rule in enumerate(rules)
    )
    broken = [rules[int(name)] for name, value in kept.collect().row(0, named=True).items() if not value]
    if not broken:
        return frame.select(kept_columns)
    first = pl.coalesce(
        pl.when(~rule.good.fill_null(False)).then(pl.lit(number)) for number, rule in enumerate(broken)
    )
    verdict = frame.select(first.alias("_rule")).to_series()
    numbers = list(range(len(broken)))
    refused = frame.with_columns(verdict).filter(verdict.is_not_null())
    log.refuse(
        refused,
        file=file,
        table=table,
        column=pl.col("_rule").replace_strict(
            numbers, [rule.column for rule in broken], return_dtype=pl.String
        ),
        reason=pl.col("_rule").replace_strict(
            numbers, [rule.reason for rule in broken], return_dtype=pl.String
        ),
        month=month,
    )
    return frame.select(kept_columns).filter(verdict.is_null())
