"""Several deliveries as one history: which delivery owns a month, and cash that holds across the seams.

Here: `merge_deliveries`, who owns a month. Not here: which deliveries count (`deliveries.history`), formats
whose states hang on other deliveries (`rejoin`).

A month belongs to the last delivery that reports it: a restated month replaces the old one whole, so a
loan that the restatement leaves out is out. Where two deliveries meet inside a loan, the ledger is carried
on: the balance at its lowest so far, principal_paid the fall since the row before, months_in_state counted
through. A loan that ended in a month still owned stays ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pc_pipeline.loans.ingest import ledger
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.tables import CENT, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A pool as known at some time.

    Attributes:
        loans, panel, recoveries: tables loan_tape, loan_panel, recoveries.
        owners: month, delivery: which delivery each month of the panel comes from.
        n_revived: rows left out because their loan had ended in an earlier month.
        quarantine: where months as filed were read anew, what that left out (table quarantine); else None.
    """

    loans: pl.DataFrame
    panel: pl.DataFrame
    recoveries: pl.DataFrame
    owners: pl.DataFrame
    n_revived: int
    quarantine: pl.DataFrame | None = None


def merge_deliveries(
    ordered: Sequence[tuple[str, pl.DataFrame, pl.DataFrame, pl.DataFrame]],
) -> History:
    """Join (id, loans, panel, recoveries), oldest first; a later delivery's months replace earlier ones.

    One delivery comes back as it is.
    """
    owners = owners_of([(name, panel) for name, _, panel, _ in ordered], "reporting_month")
    if len(ordered) == 1:
        _, loans, panel, recoveries = ordered[0]
        return History(loans=loans, panel=panel, recoveries=recoveries, owners=owners, n_revived=0)
    loans = pl.concat([loans for _, loans, _, _ in reversed(ordered)]).unique(
        "loan_id", keep="first", maintain_order=True
    )
    cash = [(name, frame.rename({"recovery_month": "reporting_month"})) for name, _, _, frame in ordered]
    paid = owners_of(
        [pair for both in zip([(n, p) for n, _, p, _ in ordered], cash, strict=True) for pair in both],
        "reporting_month",
    )
    recoveries = owned_rows([(name, frame) for name, _, _, frame in ordered], paid, "recovery_month")
    rows = owned_rows([(name, panel) for name, _, panel, _ in ordered], owners, "reporting_month")
    rows = rows.sort("loan_id", "reporting_month")
    ended = (pl.col("loan_state") > LoanState.dpd90).cast(pl.Int64)
    after = (ended.cum_sum().over("loan_id") - ended) > 0
    marked = rows.with_columns(after.alias("_after"))
    living = marked.filter(~pl.col("_after")).drop("_after")
    panel = _carry_on(living, recoveries)
    defaults = panel.filter(pl.col("loan_state") == LoanState.default).select(
        "loan_id", pl.col("reporting_month").alias("default_month")
    )
    dated = recoveries.drop("default_month").join(defaults, on="loan_id", how="inner", maintain_order="left")
    return History(
        loans=loans.sort("loan_id"),
        panel=panel.select(columns("loan_panel")),
        recoveries=dated.select(columns("recoveries")).sort("loan_id", "recovery_month"),
        owners=owners,
        n_revived=marked.height - living.height,
    )


def owners_of(frames: Sequence[tuple[str, pl.DataFrame]], month: str) -> pl.DataFrame:
    """month, delivery: the last delivery that reports the month."""
    seen = [
        frame.select(pl.col(month).unique().alias("month"), pl.lit(name).alias("delivery"))
        for name, frame in frames
    ]
    return pl.concat(seen).unique("month", keep="last", maintain_order=True).sort("month")


def owned_rows(frames: Sequence[tuple[str, pl.DataFrame]], owners: pl.DataFrame, month: str) -> pl.DataFrame:
    """Rows of (delivery, frame) in the months that the delivery owns."""
    kept = [
        frame.join(
            owners.filter(pl.col("delivery") == name).select(pl.col("month").alias(month)),
            on=month,
            how="semi",
        )
        for name, frame in frames
    ]
    return pl.concat(kept)


def _carry_on(rows: pl.DataFrame, recoveries: pl.DataFrame) -> pl.DataFrame:
    """Recompute what depends on the row before; rows inside one delivery come out as they went in."""
    first = pl.col("loan_id") != pl.col("loan_id").shift(1).fill_null("")
    is_default = pl.col("loan_state") == LoanState.default
    ultimate = recoveries.group_by("loan_id").agg(pl.col("recovery_amount").sum().alias("_recovered"))
    balance = pl.col("outstanding_balance").cum_min().over("loan_id")
    panel = rows.with_columns(balance.alias("outstanding_balance"), first.alias("_first"))
    panel = panel.with_columns(
        pl.when("_first")
        .then(pl.col("original_balance"))
        .otherwise(pl.col("outstanding_balance").shift(1))
        .alias("_before")
    )
    fall = (pl.col("_before") - pl.col("outstanding_balance")).clip(0.0, None)
    # on a default row what was written off stays so, the rest of the fall is principal
    written = pl.when(is_default).then(pl.min_horizontal("charge_off_amount", fall)).otherwise(0.0)
    panel = (
        panel.with_columns(written.round(2).alias("_written"))
        .with_columns((fall - pl.col("_written")).round(2).alias("_principal"))
        .with_columns((pl.col("_principal") - pl.col("principal_paid")).abs().alias("_moved"))
    )
    is_seam = ~pl.col("_first") & (pl.col("_moved") > CENT)
    opened = is_seam & (
        pl.col("scheduled_payment") == 0
    )  # an opening row no longer: the instalment before is due
    due = pl.when(~opened).then(pl.col("scheduled_payment")).forward_fill().over("loan_id")
    joined = panel.join(ultimate, on="loan_id", how="left", maintain_order="left")
    recovered = pl.col("_recovered").fill_null(pl.col("recovery_amount")).clip(0.0, None)
    return (
        joined.with_columns(
            due.fill_null(0.0).alias("scheduled_payment"),
            pl.col("_principal").alias("principal_paid"),
            (pl.col("interest_paid") + pl.col("_principal")).round(2).alias("actual_payment"),
            pl.min_horizontal("prepayment_amount", "_principal").alias("prepayment_amount"),
            pl.col("_written").alias("charge_off_amount"),
            pl.when(is_default).then(recovered).otherwise(0.0).round(2).alias("recovery_amount"),
            ledger.months_in_state(pl.col("loan_state")).alias("months_in_state"),
        )
        .with_columns((pl.col("charge_off_amount") - pl.col("recovery_amount")).round(2).alias("loss_amount"))
        .sort("loan_id", "reporting_month")
    )
