"""Implied ratings: a tranche's simulated loss set against published default rates. Indicative.

Here: reading a published table of cumulative default rates, and the best grade whose published rate over
the tranche's life is not below the simulated one. Not here: the simulation (`engines`), any agency's method:
a rating also weighs structure, servicer and law, so the answer is a yardstick and says so.

The table travels with the user, not with this package: agencies' tables are under their own terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError

GRADES = ("AAA", "AA", "A", "BBB", "BB", "B", "CCC")
BELOW = "below CCC"
RECOVERY = 0.40  # of senior unsecured corporate debt, the convention that turns default into expected loss
_NEEDED = (
    "loss_probability",
    "loss_probability_lower",
    "loss_probability_upper",
    "expected_loss",
    "wal_years",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRates:
    """Cumulative default rates by grade and tenor.

    Attributes:
        grades: best first (G).
        years: (Y,) tenors, rising.
        rates_GY: shares; corrected for issuers whose rating was withdrawn, d / (1 - withdrawn).
        source: file it came from.
    """

    grades: tuple[str, ...]
    years: np.ndarray
    rates_GY: np.ndarray
    source: str

    def at(self, years: float) -> np.ndarray:
        """(G,) rates over a life, linear between tenors and from zero; never falling from grade to grade.

        Small samples make published rates cross (one AAA default weighs much), which would put a riskier
        tranche in a better grade.
        """
        tenors = np.concatenate([[0.0], self.years])
        rates = np.concatenate([np.zeros((len(self.grades), 1)), self.rates_GY], axis=1)
        life = float(np.clip(years, 0.0, tenors[-1]))
        return np.maximum.accumulate([np.interp(life, tenors, row) for row in rates])

    def implied(self, probability: float, years: float) -> str:
        """The best grade whose rate over `years` is at least `probability`; 'below CCC' where none is."""
        reached = np.flatnonzero(self.at(years) >= probability)
        return self.grades[int(reached[0])] if len(reached) else BELOW


def read_default_rates(path: str | Path) -> DefaultRates:
    """Read a table of cumulative transition rates laid out as S&P's study is distributed.

    Line 1 names, line 2 `from grades, to states, tenors, tenor, tenor, ...`, then one line per grade and
    tenor with percents to the grades, default and withdrawn.

    Raises:
        DataError: it cannot be read, or its sizes and shares do not fit.
    """
    try:
        lines = [line.split(",") for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
        n_from, n_to, n_years = (int(cell) for cell in lines[1][:3])
        years = np.array([float(cell) for cell in lines[1][3 : 3 + n_years]])
        cells = np.array([[float(cell) for cell in line[:n_to]] for line in lines[2:]])
    except (OSError, ValueError, IndexError) as error:
        raise DataError("the table of default rates cannot be read", got=error, where=path) from error
    if cells.shape != (n_from * n_years, n_to) or n_from != len(GRADES) or n_to != n_from + 2:
        raise DataError(
            "the table of default rates has other sizes than it says",
            expected=(len(GRADES) * n_years, len(GRADES) + 2),
            got=cells.shape,
            where=path,
        )
    if (cells < 0).any() or (np.abs(cells.sum(axis=1) - 100.0) > 1.0).any() or (np.diff(years) <= 0).any():
        raise DataError("transition rates are percents that add up to 100, tenors rise", where=path)
    table = cells.reshape(n_years, n_from, n_to) / 100.0
    rates = table[..., -2] / (1.0 - table[..., -1])
    return DefaultRates(grades=GRADES, years=years, rates_GY=rates.T, source=Path(path).name)


def implied_ratings(tranches: Any, rates: DefaultRates) -> pl.DataFrame:
    """Implied grade of every tranche, by loss probability and by expected loss.

    By probability: first dollar lost, over the tranche's mean life. By loss: expected loss over 1 - 40 %
    recovery, as if it were the default of a bond.

    Args:
        tranches: table tranche_report, or any frame with its figures; polars or pandas.
        rates: see `read_default_rates`.

    Returns:
        The frame's naming columns (scenario, tranche where present), life_years, loss_probability,
        published_rate of the implied grade, implied_by_probability, best, worst (at the ends of the
        interval), expected_loss, implied_by_loss. A residual (no coupon) or a tranche without a life is not
        rated.

    Raises:
        DataError: a column is missing.
    """
    frame = nw.from_native(tranches, eager_only=True).to_polars()
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        raise DataError("tranche figures lack columns", expected=", ".join(_NEEDED), got=missing)
    named = [name for name in ("scenario", "tranche") if name in frame.columns]
    rows = []
    for row in frame.iter_rows(named=True):
        life = row["wal_years"]
        if life is None or not life > 0 or ("coupon" in row and row["coupon"] is None):
            continue
        grade = rates.implied(row["loss_probability"], life)
        known = rates.at(life)
        rows.append(
            {name: row[name] for name in named}
            | {
                "life_years": life,
                "loss_probability": row["loss_probability"],
                "implied_by_probability": grade,
                "best": rates.implied(row["loss_probability_lower"], life),
                "worst": rates.implied(row["loss_probability_upper"], life),
                "published_rate": float(known[rates.grades.index(grade)]) if grade in rates.grades else None,
                "expected_loss": row["expected_loss"],
                "implied_by_loss": rates.implied(row["expected_loss"] / (1.0 - RECOVERY), life),
            }
        )
    return pl.DataFrame(rows)
