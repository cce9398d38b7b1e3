"""What comes back of a synthetic default, and when.

Here: loss given default (inside the class range, higher for higher LTV) and the lag until the cash. Not here:
which loans default (`panel_generator`), how recoveries are simulated (`simulation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from scipy.special import ndtr

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.loans.asset_classes import RECOVERY_LAG_MONTHS, asset_classes
from pc_pipeline.loans.counter import normals, uniforms
from pc_pipeline.loans.effects import codes_of, loan_numbers
from pc_pipeline.schemas.units import ASSET_CLASSES

LTV_CORRELATION: Final = 0.5  # of the normal score of severity with LTV inside its class range; convention


@dataclass(frozen=True, kw_only=True, slots=True)
class DefaultedLoans:
    """N defaults: tape rows, month index of default (N,), macro path (N,)."""

    loans: pl.DataFrame
    month: np.ndarray
    path_id: np.ndarray

    @property
    def class_code(self) -> np.ndarray:
        """(N,) asset class codes."""
        return codes_of(self.loans["asset_class"], ASSET_CLASSES, "asset_class")


def severities(defaults: DefaultedLoans, seed: int, scenario: str) -> np.ndarray:
    """(N,) loss given default: a place in the class range, Phi(rho z_ltv + sqrt(1 - rho^2) noise)."""
    low, high = np.array([asset_classes()[name].range("lgd") for name in ASSET_CLASSES])[
        defaults.class_code
    ].T
    ltv_ranges = np.array([asset_classes()[name].range("ltv") or (np.nan, np.nan) for name in ASSET_CLASSES])
    ltv_low, ltv_high = ltv_ranges[defaults.class_code].T
    ltv = defaults.loans["ltv_origination"].fill_null(np.nan).to_numpy()
    z_ltv = (ltv - (ltv_low + ltv_high) / 2) / ((ltv_high - ltv_low) / np.sqrt(12.0))
    weight = np.where(np.isnan(z_ltv), 0.0, LTV_CORRELATION)
    keys = loan_numbers(defaults.loans), defaults.month, defaults.path_id
    noise = normals(derive_seed(seed, "severity", scenario), *keys)
    place = ndtr(weight * np.nan_to_num(z_ltv) + np.sqrt(1.0 - weight**2) * noise)
    return low + place * (high - low)


def lag_months(defaults: DefaultedLoans, seed: int, scenario: str) -> np.ndarray:
    """(N,) whole months from default to recovery cash, even over the class range."""
    low, high = np.array([RECOVERY_LAG_MONTHS[name] for name in ASSET_CLASSES])[defaults.class_code].T
    keys = loan_numbers(defaults.loans), defaults.month, defaults.path_id
    draw = uniforms(derive_seed(seed, "recovery_lag", scenario), *keys)
    return low + np.floor(draw * (high - low + 1)).astype(np.int64)


def month_dates(months: np.ndarray) -> pl.Series:
    """First-of-month dates of month indices."""
    days = (np.asarray(months) - 1970 * 12).astype("datetime64[M]").astype("datetime64[D]").astype(np.int32)
    return pl.Series(days).cast(pl.Date)
