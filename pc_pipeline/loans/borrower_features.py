"""The ten borrower features of the payment cascade: ranges, normalisation, neutral values.

Here: borrowers as dicts, a frame or a loan tape -> (N, 10) numbers. A missing feature takes its neutral
value, a middling borrower; one outside its range raises. Not here: networks (`models.payment_cascade`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.frames import to_polars

RISK_GRADES: Final = ("A", "B", "C", "D", "E")


@dataclass(frozen=True, slots=True, kw_only=True)
class BorrowerFeature:
    """One feature.

    Attributes:
        name: key of a borrower.
        neutral: value taken when it is missing, raw unit.
        lower, upper: raw range, inclusive.
        unit: of the raw value.
    """

    name: str
    neutral: float
    lower: float
    upper: float
    unit: str


BORROWER_FEATURES: Final = (
    BorrowerFeature(name="credit_score", neutral=680, lower=300, upper=850, unit="score"),
    BorrowerFeature(name="dti", neutral=0.35, lower=0, upper=1, unit="debt to income, decimal"),
    BorrowerFeature(name="income", neutral=65_000, lower=1, upper=1e9, unit="currency per year"),
    BorrowerFeature(name="principal", neutral=20_000, lower=1, upper=1e10, unit="currency"),
    BorrowerFeature(name="term_months", neutral=48, lower=1, upper=600, unit="months"),
    BorrowerFeature(name="interest_rate", neutral=0.12, lower=0, upper=1, unit="decimal per year"),
    BorrowerFeature(name="risk_grade", neutral=2, lower=0, upper=4, unit="A (0) to E (4)"),
    BorrowerFeature(name="employment_months", neutral=60, lower=0, upper=1200, unit="months"),
    BorrowerFeature(name="delinquencies_2y", neutral=0, lower=0, upper=1000, unit="count"),
    BorrowerFeature(name="bankruptcies", neutral=0, lower=0, upper=1000, unit="count"),
)
FEATURE_NAMES: Final = tuple(feature.name for feature in BORROWER_FEATURES)
NEUTRAL: Final = {feature.name: feature.neutral for feature in BORROWER_FEATURES}
N_FEATURES: Final = len(BORROWER_FEATURES)


def normalise(raw_NF: np.ndarray) -> np.ndarray:
    """(N, 10) raw values, none missing -> float32 inputs of the network."""
    x = np.array(raw_NF, dtype=float)
    x[:, 0] = (x[:, 0] - 300.0) / 550.0
    x[:, 2] = np.log(x[:, 2]) / 15.0
    x[:, 3] = np.log(x[:, 3]) / 15.0
    x[:, 4] /= 360.0
    x[:, 5] /= 0.35
    x[:, 6] /= 4.0
    x[:, 7] = np.minimum(x[:, 7], 120.0) / 120.0
    x[:, 8] = np.minimum(x[:, 8], 10.0) / 10.0
    x[:, 9] = np.minimum(x[:, 9], 3.0) / 3.0
    return x.astype(np.float32)


def raw_features(borrowers: Any) -> np.ndarray:
    """(N, 10) raw values, missing ones neutral.

    Args:
        borrowers: one mapping, a sequence of mappings, or a polars or pandas frame; other keys are ignored.

    Raises:
        DataError: a value is no number (or no grade A to E) or outside its range; the message names
            feature, row and range.
    """
    if isinstance(borrowers, Mapping):
        borrowers = [borrowers]
    if isinstance(borrowers, Sequence):
        for row, borrower in enumerate(borrowers):
            if not isinstance(borrower, Mapping):
                raise DataError(
                    "not a borrower", expected="a mapping", got=type(borrower).__name__, where=row
                )
        columns = [[borrower.get(feature.name) for borrower in borrowers] for feature in BORROWER_FEATURES]
    else:
        frame = to_polars(borrowers, [], "borrowers")
        columns = [
            frame[feature.name].to_list() if feature.name in frame.columns else [None] * frame.height
            for feature in BORROWER_FEATURES
        ]
    return np.column_stack(
        [_numbers(feature, column) for feature, column in zip(BORROWER_FEATURES, columns, strict=True)]
    ).reshape(-1, N_FEATURES)


def borrower_features(borrowers: Any) -> np.ndarray:
    """(N, 10) float32 normalised features of borrowers; see `raw_features`."""
    return normalise(raw_features(borrowers))


def _numbers(feature: BorrowerFeature, column: list[Any]) -> np.ndarray:
    values = np.empty(len(column))
    for row, value in enumerate(column):
        values[row] = _number(feature, value, row)
    return values


def _number(feature: BorrowerFeature, value: Any, row: int) -> float:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return feature.neutral
    if feature.name == "risk_grade" and isinstance(value, str) and value.strip().upper() in RISK_GRADES:
        return float(RISK_GRADES.index(value.strip().upper()))
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    is_grade = feature.name == "risk_grade"
    if not is_number or is_grade:
        expected = "one of A, B, C, D, E" if is_grade else f"a number, {feature.unit}"
        raise DataError(
            f"{feature.name} is not usable", expected=expected, got=repr(value), where=f"borrower {row}"
        )
    number = float(value)
    if not feature.lower <= number <= feature.upper:
        raise DataError(
            f"{feature.name} is out of range",
            expected=f"{feature.lower:g}..{feature.upper:g} {feature.unit}",
            got=repr(value),
            where=f"borrower {row}",
        )
    return number


def borrowers_of_tape(loans: Any) -> pl.DataFrame:
    """The ten features (raw, null where unknown) of the loans of a tape, with loan_id and borrower_id.

    A debt service cover (ratios above 1 of non-consumer loans) is read as its inverse; the risk grade is
    the fifth of the internal score, 80 and more being A.
    """
    needed = ["loan_id", "original_balance", "term_months", "interest_rate", "borrower_type"]
    needed += ["dti_dscr_origination", "internal_score_origination", "external_score_origination"]
    frame = to_polars(loans, needed, "loans")
    ratio = pl.col("dti_dscr_origination")
    cover = (pl.col("borrower_type") != "consumer") & (ratio > 1)
    grade = (4 - (pl.col("internal_score_origination") / 20).floor()).clip(0, 4).cast(pl.Int64)
    unknown = pl.lit(None, dtype=pl.Float64)
    return frame.select(
        "loan_id",
        pl.col("loan_id").alias("borrower_id"),
        pl.col("external_score_origination").clip(300, 850).alias("credit_score"),
        pl.when(cover).then(1 / ratio).otherwise(ratio).clip(0, 1).alias("dti"),
        unknown.alias("income"),
        pl.col("original_balance").clip(1, None).alias("principal"),
        pl.col("term_months"),
        pl.col("interest_rate").clip(0, 1),
        grade.replace_strict(list(range(5)), list(RISK_GRADES), default=None, return_dtype=pl.String).alias(
            "risk_grade"
        ),
        unknown.alias("employment_months"),
        unknown.alias("delinquencies_2y"),
        unknown.alias("bankruptcies"),
    )
