"""The four asset classes: parameters of the synthetic tape and of its monthly moves.

Here: `assumptions/asset_classes.csv` (a stated assumption table, taken over unchanged) read into one object
per class, and the conventions that the table is silent on. Not here: how they become loans
(`tape_generator`) or probabilities (`truth`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

import numpy as np

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.schemas.states import N_LIVING, N_STATES, LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES

# Conventions the table does not state.
FLOATING_SHARE: Final = {"corporate": 0.60, "consumer": 0.05, "realestate": 0.30, "receivables": 0.20}
RECOVERY_LAG_MONTHS: Final = {
    "corporate": (9, 18),
    "consumer": (3, 9),
    "realestate": (12, 24),
    "receivables": (2, 6),
}
CURE_SPLIT: Final = {2: (0.70, 0.30), 3: (0.60, 0.20, 0.20)}  # share of cures to performing, 30dpd, 60dpd
PREPAY_SHARE_WHEN_LATE: Final = 0.25  # monthly prepayment of a late loan over that of a performing one
BALLOON_AMORTISATION_MONTHS: Final = 360


@dataclass(frozen=True, kw_only=True, slots=True)
class AssetClass:
    """One column of the assumption table.

    Attributes:
        name: one of ASSET_CLASSES.
        values: parameter name -> value; parameters that do not apply to the class are absent.
    """

    name: str
    values: MappingProxyType[str, float]

    def range(self, quantity: str) -> tuple[float, float] | None:
        """(min, max) of a quantity such as 'ltv', or None where it does not apply."""
        low, high = self.values.get(f"{quantity}_min"), self.values.get(f"{quantity}_max")
        return None if low is None or high is None else (low, high)

    def __getitem__(self, parameter: str) -> float:
        try:
            return self.values[parameter]
        except KeyError:
            raise ConfigError(
                "no such parameter for this asset class",
                expected=sorted(self.values),
                got=parameter,
                where=self.name,
            ) from None


def read_asset_classes(text: str) -> dict[str, AssetClass]:
    """Parse the table (one row per parameter, one column per class).

    Raises:
        ConfigError: a class is missing or a cell is no number.
    """
    rows = list(csv.DictReader(text.splitlines()))
    missing = [name for name in ASSET_CLASSES if rows and name not in rows[0]]
    if not rows or missing:
        raise ConfigError("asset class table lacks columns", expected=ASSET_CLASSES, got=missing or "no rows")
    classes = {}
    for name in ASSET_CLASSES:
        try:
            values = {row["parameter"]: float(row[name]) for row in rows if row[name].strip()}
        except ValueError as error:
            raise ConfigError("asset class table holds no number", got=error, where=name) from error
        classes[name] = AssetClass(name=name, values=MappingProxyType(values))
    return classes


@cache
def asset_classes() -> MappingProxyType[str, AssetClass]:
    """The packaged table."""
    path = resources.files("pc_pipeline.loans") / "assumptions" / "asset_classes.csv"
    return MappingProxyType(read_asset_classes(path.read_text(encoding="utf-8")))


@cache
def _base_moves() -> np.ndarray:
    rows = np.zeros((len(ASSET_CLASSES), N_LIVING, N_STATES))
    for index, name in enumerate(ASSET_CLASSES):
        rows[index] = _class_moves(asset_classes()[name])
    rows.flags.writeable = False
    return rows


def _class_moves(parameters: AssetClass) -> np.ndarray:
    row = np.zeros((N_LIVING, N_STATES))
    prepay = parameters["p_performing_to_prepaid"]
    row[0, 1], row[0, LoanState.prepaid] = parameters["p_performing_to_30dpd"], prepay
    row[1, 2], row[1, 0] = parameters["p_30dpd_to_60dpd"], parameters["p_30dpd_cure"]
    row[2, 3] = parameters["p_60dpd_to_90dpd"]
    row[3, LoanState.default] = parameters["p_90dpd_to_default"]
    row[2, :2] = parameters["p_60dpd_cure"] * np.array(CURE_SPLIT[2])
    row[3, :3] = parameters["p_90dpd_cure"] * np.array(CURE_SPLIT[3])
    row[1:, LoanState.prepaid] = PREPAY_SHARE_WHEN_LATE * prepay
    np.fill_diagonal(row[:, :N_LIVING], 1.0 - row.sum(axis=1))
    return row


def base_moves() -> np.ndarray:
    """(4 classes, 4, 7) monthly moves at a neutral index: no miss on record, no season, not final."""
    return _base_moves()
