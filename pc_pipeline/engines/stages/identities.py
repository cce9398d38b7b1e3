"""What must hold between stored tables. Each function returns the rows that break it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import polars as pl

from pc_pipeline.core.store import Store
from pc_pipeline.loans.identities import PANEL_IDENTITIES
from pc_pipeline.schemas.units import OBSERVED

POOL_TOLERANCE = 1e-6  # of the pool balance: float64 sums over loans and months
LOSS_TOLERANCE = 1e-9


def panel_breaches(store: Store, scenario: str) -> pl.DataFrame:
    """Rows that break an identity of the panel.

    Real servicer data jump buckets, so the contract's moves are asked of generated panels only.
    """
    panel = store.read_table("loan_panel", scenario)
    checks = [check for name, check in PANEL_IDENTITIES.items() if name != "moves" or scenario != OBSERVED]
    return pl.concat([check(panel) for check in checks])


def simulation_breaches(store: Store, scenario: str) -> pl.DataFrame:
    """Paths on which scheduled + prepaid + defaulted principal is not the pool's balance."""
    balance = float(store.read_table("pool")["current_balance"].sum())
    principal = pl.col("scheduled_principal") + pl.col("prepaid_principal") + pl.col("defaulted_balance")
    return (
        store.scan_table("simulations", scenario)
        .group_by("path_id")
        .agg(principal.sum().alias("principal"))
        .filter((pl.col("principal") - balance).abs() > POOL_TOLERANCE * balance)
        .with_columns(pl.lit(balance).alias("pool_balance"))
        .sort("path_id")
        .collect()
    )


def seniority_breaches(store: Store, scenario: str) -> pl.DataFrame:
    """Tranches that lose a larger share than the one below them (tables list senior first)."""
    report = store.read_table("tranche_report", scenario)
    return (
        report.with_columns(pl.col("expected_loss").shift(-1).alias("expected_loss_below"))
        .filter(pl.col("expected_loss") > pl.col("expected_loss_below") + LOSS_TOLERANCE)
        .select("scenario", "tranche", "expected_loss", "expected_loss_below")
    )


def expected_losses(store: Store) -> dict[str, float]:
    """Pool expected loss by scenario, as stored."""
    report = store.read_table("pool_report").filter(pl.col("measure") == "expected_loss")
    return dict(zip(report["scenario"], report["value"], strict=True))


def is_ordered(losses: Mapping[str, float]) -> bool:
    """Severely adverse > adverse > baseline, as far as those scenarios were run."""
    ladder = [losses[name] for name in ("baseline", "adverse", "severely_adverse") if name in losses]
    return all(low < high for low, high in itertools.pairwise(ladder))
