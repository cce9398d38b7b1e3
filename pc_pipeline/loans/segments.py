"""Industry and region of a loan as small integers that mean the same in every tape, and its latest payments.

Here: `segment_codes`, `loan_extras`: what may follow the 24 loan features. The names of the generator have
codes of their own; any other name shares one of the remaining codes by its hash, so no vocabulary has to
travel with a model. Not here: the effects learned of them (`models`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

import numpy as np
import polars as pl

from pc_pipeline.core.periods import month_index_expr
from pc_pipeline.loans.effects import INDUSTRIES, REGIONS
from pc_pipeline.schemas.units import LOAN_EXTRAS, N_SEGMENT_CODES, PAYMENT_WINDOW, SEGMENT_CODES

MAX_RATIO: Final = 3.0
_COLUMNS: Final = {"industry_sector": INDUSTRIES, "geography_region": REGIONS}


def segment_codes(loans: pl.DataFrame) -> np.ndarray:
    """(L, 2) float32 codes of industry and region, 0..N_SEGMENT_CODES-1; NaN where unknown."""
    found = [_codes(loans, name, known) for name, known in _COLUMNS.items()]
    return np.column_stack(found).astype(np.float32).reshape(loans.height, len(SEGMENT_CODES))


def loan_extras(loans: pl.DataFrame) -> np.ndarray:
    """(L, 14) float32 `LOAN_EXTRAS` of a tape or pool, NaN where unknown.

    Payments are those of columns `payment_ratio_12` (a year ago) to `payment_ratio_1`, if the frame has them.
    """
    absent = [pl.lit(None, pl.Float64).alias(name) for name in PAYMENT_WINDOW if name not in loans.columns]
    paid = loans.with_columns(absent).select(pl.col(PAYMENT_WINDOW).cast(pl.Float64).fill_null(float("nan")))
    found = np.column_stack([segment_codes(loans), paid.to_numpy()])
    return found.astype(np.float32).reshape(loans.height, len(LOAN_EXTRAS))


def with_payments(pool: pl.DataFrame, panel: pl.DataFrame, as_of_month: int) -> pl.DataFrame:
    """The pool with the payment ratios of the twelve months up to `as_of_month` (a month index, included).

    Args:
        panel: table loan_panel of one history; months without a report or nothing due stay null.
    """
    back = as_of_month + 1 - month_index_expr("reporting_month")
    recent = (
        panel.select("loan_id", back.alias("_back"), "actual_payment", "scheduled_payment")
        .filter(pl.col("_back").is_between(1, len(PAYMENT_WINDOW)), pl.col("scheduled_payment") > 0)
        .select(
            "loan_id",
            pl.format("payment_ratio_{}", "_back").alias("_name"),
            (pl.col("actual_payment") / pl.col("scheduled_payment")).clip(0.0, MAX_RATIO).alias("_ratio"),
        )
    )
    wide = recent.pivot("_name", index="loan_id", values="_ratio", aggregate_function="last")
    return pool.join(wide, on="loan_id", how="left", maintain_order="left")


def _codes(loans: pl.DataFrame, column: str, known: Sequence[str]) -> np.ndarray:
    if column not in loans.columns:
        return np.full(loans.height, np.nan)
    names = loans[column].cast(pl.String)
    distinct = [name for name in names.unique().to_list() if name]
    codes = [float(_code(name, known)) for name in distinct]
    return names.replace_strict(distinct, codes, default=None, return_dtype=pl.Float64).to_numpy()


def _code(name: str, known: Sequence[str]) -> int:
    if name in known:
        return known.index(name)
    spare = N_SEGMENT_CODES - len(known)
    return len(known) + crc32(name.strip().lower().encode()) % spare
