"""From users' data to training histories of the payment cascade.

Here: lists and dicts, long frames, and a loan panel -> `CascadeHistories`. Works without torch. Not here:
training, generation (`payment_cascade`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index, month_index_expr, parse_month
from pc_pipeline.core.rng import stream
from pc_pipeline.loans.borrower_features import (
    FEATURE_NAMES,
    borrower_features,
    borrowers_of_tape,
    normalise,
    raw_features,
)
from pc_pipeline.loans.features import FeatureScaler, loan_features
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.loans.macro_index import MacroPaths
from pc_pipeline.loans.payment_status import DAYS_30, as_codes, encode_sequences, status_of_state
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.schemas.units import LOAN_FEATURES

HIDDEN_SHARE: Final = 0.1  # of histories shown without their further features, so that both cases are learned


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeHistories:
    """N histories, as arrays.

    Attributes:
        codes: (N, T) int8, -1 after the end. features: (N, F) float32: the ten, then `extra_features`.
        extra_features: names beyond the ten. scaler: their constants.
        months: (N,) month index of column 0, or None. macro, macro_row: paths lived through, or None.
        is_final: (N, T) bool, in or after the last contractual month; None where unknown.
        learn: (N, T) bool, columns to learn from; None for all.
        last_column: (N,) columns a history could have been watched for, had it not ended; None: all T.
        outlives_term: some history goes on, paid up, beyond its stated term.
    """

    codes: np.ndarray
    features: np.ndarray
    extra_features: tuple[str, ...] = ()
    scaler: FeatureScaler | None = None
    months: np.ndarray | None = None
    macro: MacroPaths | None = None
    macro_row: np.ndarray | None = None
    is_final: np.ndarray | None = None
    learn: np.ndarray | None = None
    last_column: np.ndarray | None = None
    outlives_term: bool = False

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> CascadeHistories:
        """Some histories, by number."""
        by_row = ("codes", "features", "months", "macro_row", "is_final", "learn", "last_column")
        found: dict[str, Any] = {name: getattr(self, name) for name in by_row}
        chosen: dict[str, Any] = {name: None if v is None else v[rows] for name, v in found.items()}
        return replace(self, **chosen)


def is_panel(data: Any) -> bool:
    """Whether a frame is a loan panel."""
    return {"loan_id", "reporting_month", "loan_state"} <= set(getattr(data, "columns", ()))


def histories_of_lists(sequences: Any, borrowers: Any, start_dates: Any = None) -> CascadeHistories:
    """Histories of ragged lists (or codes, or a long frame) and their borrowers.

    Args:
        sequences: N lists of status names; or a frame with loan_id, month, payment_status.
        borrowers: N mappings, or a frame (matched by loan_id where both have it); None: neutral borrowers.
        start_dates: one date, or N dates, of the first month; None where unknown.

    Raises:
        DataError: counts differ, or a status or feature is not usable.
    """
    if hasattr(sequences, "columns"):
        codes, ids = _of_long_frame(sequences)
        if hasattr(borrowers, "columns") and "loan_id" in borrowers.columns:
            frame = to_polars(borrowers, ["loan_id"], "borrower_features")
            matched = pl.DataFrame({"loan_id": ids}).join(
                frame, on="loan_id", how="left", maintain_order="left"
            )
            borrowers = matched.drop("loan_id")
    else:
        codes = as_codes(sequences)
    raw = raw_features([{}] * len(codes) if borrowers is None else borrowers)
    if len(raw) != len(codes):
        raise DataError("every sequence needs its borrower", expected=len(codes), got=len(raw))
    term = raw[:, FEATURE_NAMES.index("term_months")]
    stated = np.ones(len(codes), bool) if borrowers is not None and _states_term(borrowers) else None
    beyond = (codes >= 0) & (codes < DAYS_30) & (np.arange(1, codes.shape[1] + 1) >= term[:, None])
    months = None if start_dates is None else _month_numbers(start_dates, len(codes))
    return CascadeHistories(
        codes=codes,
        features=normalise(raw),
        months=months,
        outlives_term=bool(stated is not None and beyond.any()),
    )


def _states_term(borrowers: Any) -> bool:
    if hasattr(borrowers, "columns"):
        return "term_months" in borrowers.columns
    return any(borrower.get("term_months") is not None for borrower in borrowers)


def _month_numbers(dates: Any, count: int) -> np.ndarray:
    each = [dates] * count if isinstance(dates, str | date) else list(dates)
    if len(each) != count:
        raise DataError("one start date for all, or one each", expected=count, got=len(each))
    return np.array([month_index(parse_month(value)) for value in each], dtype=np.int64)


def _of_long_frame(data: Any) -> tuple[np.ndarray, pl.Series]:
    """(codes, loan ids) of a frame with loan_id, month, payment_status, one row a month."""
    frame = to_polars(data, ["loan_id", "month", "payment_status"], "payment_sequences")
    grouped = (
        frame.sort("loan_id", "month")
        .group_by("loan_id", maintain_order=True)
        .agg(pl.col("payment_status").cast(pl.String), pl.col("month").n_unique().alias("n"))
    )
    twice = grouped.filter(pl.col("n") != pl.col("payment_status").list.len())
    if twice.height:
        raise DataError(
            "a month occurs twice in a history", got=twice["loan_id"][0], where="payment_sequences"
        )
    lists = grouped["payment_status"].to_list()
    return as_codes(_rectangle(lists)), grouped["loan_id"]


def _rectangle(lists: Sequence[list[str]]) -> Any:
    """Codes of lists in which a terminal status may be repeated to the end."""
    trimmed = []
    for row in lists:
        end = next((k for k, status in enumerate(row) if status in ("default", "paid_off", "prepaid")), None)
        rest = [] if end is None else row[end + 1 :]
        trimmed.append(row if end is None or any(status != row[end] for status in rest) else row[: end + 1])
    return encode_sequences(trimmed)


def histories_of_panel(panel: Any, loans: Any, macro: Any = None, hide_seed: int = 0) -> CascadeHistories:
    """Histories of a loan panel: column 0 is the state a loan enters with, then one column a report.

    Statuses come from states (performing with 1 to 29 days past due is the grace period). Features are the
    ten read off the tape, and the 24 loan features. Every unbroken stretch of reports is one history.
    """
    trajectories = prepare_trajectories(panel, loans, macro)
    tape = to_polars(loans, ["loan_id"], "loans")
    return histories_of_trajectories(trajectories, tape, to_polars(panel, ["loan_id"], "panel"), hide_seed)


def histories_of_trajectories(
    trajectories: Trajectories,
    loans: pl.DataFrame,
    panel: pl.DataFrame | None = None,
    hide_seed: int | None = 0,
) -> CascadeHistories:
    """`histories_of_panel` for prepared trajectories, in their order.

    Args:
        panel: to tell the grace period; None leaves it out.
        hide_seed: of the choice of histories shown without further features; None shows all.
    """
    states = np.concatenate([trajectories.initial_state[:, None], trajectories.states], axis=1)
    codes = status_of_state(states)
    if panel is not None:
        grace = _grace_rows(trajectories, panel)
        codes[grace[0], grace[1] + 1] = 1
    ten = borrower_features(borrowers_of_tape(loans))[trajectories.loan_row]
    extra = np.where(trajectories.missing, 0.0, trajectories.features).astype(np.float32)
    if hide_seed is not None:
        hidden = stream(hide_seed, "payment_cascade", "hidden").random(len(extra)) < HIDDEN_SHARE
        extra[hidden] = 0.0
    unknown = np.zeros((len(codes), 1), dtype=bool)
    return CascadeHistories(
        codes=codes,
        features=np.concatenate([ten, extra], axis=1),
        extra_features=LOAN_FEATURES,
        scaler=trajectories.scaler,
        months=trajectories.start_month.astype(np.int64) - 1,
        macro=trajectories.macro,
        macro_row=trajectories.macro_row,
        is_final=np.concatenate([unknown, trajectories.is_final], axis=1),
        last_column=int((trajectories.start_month + trajectories.lengths).max())
        - trajectories.start_month.astype(np.int64)
        + 1,
    )


def _grace_rows(trajectories: Trajectories, panel: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(history, position) of the reports in the grace period."""
    days = pl.col("days_past_due")
    late = panel.filter((pl.col("loan_state") == 0) & (days >= 1) & (days < 30))
    keys = ["scenario", "macro_path_id", "loan_id"]
    starts = trajectories.keys.select(keys).with_columns(
        history=pl.int_range(pl.len()),
        start=pl.Series(trajectories.start_month.astype(np.int64)),
        months=pl.Series(trajectories.lengths.astype(np.int64)),
    )
    placed = (
        late.select(*keys, month_index_expr("reporting_month").cast(pl.Int64).alias("at"))
        .join(starts, on=keys, how="inner")
        .with_columns(position=pl.col("at") - pl.col("start"))
        .filter((pl.col("position") >= 0) & (pl.col("position") < pl.col("months")))
    )
    return placed["history"].to_numpy(), placed["position"].to_numpy()


def features_for(
    borrowers: Any, extra_features: tuple[str, ...], scaler: FeatureScaler | None
) -> tuple[np.ndarray, np.ndarray]:
    """((N, F) normalised features, (N, 10) raw ones) of borrowers, or of the loans of a tape or pool.

    Further features a model knows are 0, unknown, for borrowers that state the ten only.
    """
    if hasattr(borrowers, "columns") and "original_balance" in borrowers.columns:
        tape = to_polars(borrowers, [], "borrowers")
        raw = raw_features(borrowers_of_tape(tape))
        extra = loan_features(tape, scaler).values if scaler is not None else None
    else:
        raw, extra = raw_features(borrowers), None
    ten = normalise(raw)
    if extra is None:
        extra = np.zeros((len(ten), len(extra_features)), dtype=np.float32)
    return np.concatenate([ten, extra[:, : len(extra_features)]], axis=1), raw
