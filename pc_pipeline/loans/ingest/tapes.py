"""A tape from a format's own fields: what is not filed becomes null, and the quality table says so.

Here: `complete_loans`, small expressions that several formats share. Not here: which field means what
(adapters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from pc_pipeline.loans.ingest.adapter import table_types
from pc_pipeline.loans.ingest.canonical import screen_loans
from pc_pipeline.loans.ingest.result import QualityLog

SCORE_RANGE = (300.0, 850.0)


def complete_loans(
    filed: pl.DataFrame, fields: Mapping[str, pl.Expr], log: QualityLog, file: str
) -> pl.DataFrame:
    """Table loan_tape from `fields` (our column -> expression over `filed`); other columns become null.

    vintage_month and payment_frequency follow from the rest where they are not given.
    """
    given = dict(fields)
    given.setdefault("vintage_month", fields["origination_date"].dt.month_start())
    given.setdefault("payment_frequency", pl.lit("monthly"))
    types = table_types("loan_tape")
    for name in types:
        if name not in given:
            log.note(file, name, "not filed: null")
    tape = filed.select(
        "_row",
        *(given.get(name, pl.lit(None)).cast(kind, strict=False).alias(name) for name, kind in types.items()),
    )
    return screen_loans(tape, log, file)


def valid_score(score: pl.Expr) -> pl.Expr:
    """A bank score within 300-850, else null."""
    return pl.when(score.is_between(*SCORE_RANGE)).then(score)


def positive(value: pl.Expr) -> pl.Expr:
    """The value where it is above zero; zero means missing."""
    return pl.when(value > 0).then(value)


def count_missing_zero(frame: pl.DataFrame, names: Sequence[str], log: QualityLog, file: str) -> None:
    """Count zeros that mean missing, column by column."""
    for name in names:
        n = frame.select((pl.col(name) <= 0).sum()).item() or 0
        log.count("zeros_that_mean_missing", n)
        log.repair(file, name, n, "zero means missing: null")
