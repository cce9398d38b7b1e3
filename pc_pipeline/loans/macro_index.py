"""Macro index of each kind of move: nine series -> one number per month, class and kind of move.

    m[f, c](t) = w[f, c] . (x(t) - mu) / sd / sqrt(w' R w)

with mu, sd and R the means, standard deviations and correlations of all months of all paths of the four
standard scenarios pooled with equal weight (`assumptions/pooled_macro_moments.csv`, from 4 x 2,000 paths of
60 months). So m has mean 0 and variance 1 over that mix. The weights (`assumptions/macro_sensitivities.csv`)
are the stated elasticities for GDP, unemployment and spreads; those of the other series are conventions.

Not here: macro paths themselves (`scenarios`), nor what the index does to a loan (`truth`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.core.periods import month_index, month_index_expr, parse_month
from pc_pipeline.loans.frames import to_polars
from pc_pipeline.schemas.units import ASSET_CLASSES, MACRO_NAMES, N_MACRO

MOVE_KINDS: Final = ("miss", "worsen", "cure", "prepay")
MISS, WORSEN, CURE, PREPAY = range(len(MOVE_KINDS))


def _read(name: str) -> list[dict[str, str]]:
    path = resources.files("pc_pipeline.loans") / "assumptions" / name
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledMoments:
    """mean (9,), sd (9,), correlation (9, 9) of the pooled scenario mix, in the series' own units."""

    mean: np.ndarray
    sd: np.ndarray
    correlation: np.ndarray


def moments_of(paths_PTM: np.ndarray) -> PooledMoments:
    """Pooled moments over all paths and months of a (P, T, 9) array."""
    rows = np.asarray(paths_PTM, dtype=float).reshape(-1, N_MACRO)
    return PooledMoments(mean=rows.mean(axis=0), sd=rows.std(axis=0), correlation=np.corrcoef(rows.T))


@cache
def pooled_moments() -> PooledMoments:
    """The packaged moments."""
    table = {
        row["moment"]: [float(row[name]) for name in MACRO_NAMES] for row in _read("pooled_macro_moments.csv")
    }
    correlation = np.array([table[f"correlation_{name}"] for name in MACRO_NAMES])
    return PooledMoments(mean=np.array(table["mean"]), sd=np.array(table["sd"]), correlation=correlation)


@cache
def sensitivities() -> np.ndarray:
    """(4 kinds, 4 classes, 9) weights on standardised series: effect on the log-odds of the move."""
    weights = np.zeros((len(MOVE_KINDS), len(ASSET_CLASSES), N_MACRO))
    for row in _read("macro_sensitivities.csv"):
        place = MOVE_KINDS.index(row["move"]), ASSET_CLASSES.index(row["asset_class"])
        weights[place] = [float(row[name]) for name in MACRO_NAMES]
    weights.flags.writeable = False
    return weights


def macro_index(macro_PTM: np.ndarray) -> np.ndarray:
    """(P, T, 9) macro paths -> (P, T, 4 classes, 4 kinds) index; mean 0, variance 1 over the pooled mix."""
    moments, weights = pooled_moments(), sensitivities()
    z_PTM = (np.asarray(macro_PTM, dtype=float) - moments.mean) / moments.sd
    norm = np.sqrt(np.einsum("fcm,mn,fcn->fc", weights, moments.correlation, weights))
    return np.einsum("ptm,fcm->ptcf", z_PTM, weights / norm[..., None], optimize=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class MacroPaths:
    """Macro paths on one calendar.

    Attributes:
        values: (P, T, 9). start_month: month index of column 0.
        keys: P pairs (scenario, macro_path_id), in row order.
    """

    values: np.ndarray
    start_month: int
    keys: tuple[tuple[str, int], ...]

    @property
    def n_months(self) -> int:
        """T."""
        return self.values.shape[1]

    def rows_of(self, frame: pl.DataFrame) -> np.ndarray:
        """(N,) path row of each row of a frame with scenario and macro_path_id."""
        lookup = pl.DataFrame(
            {
                "scenario": [key[0] for key in self.keys],
                "macro_path_id": pl.Series([key[1] for key in self.keys], dtype=pl.Int64),
                "path_row": pl.Series(range(len(self.keys)), dtype=pl.Int64),
            }
        )
        pairs = frame.select("scenario", pl.col("macro_path_id").cast(pl.Int64))
        rows = pairs.join(lookup, on=["scenario", "macro_path_id"], how="left", maintain_order="left")[
            "path_row"
        ]
        if rows.null_count():
            gone = pairs.filter(rows.is_null()).unique().head(3).rows()
            raise DataError("macro paths are missing", expected=gone, got=self.keys[:8], where="macro")
        return rows.to_numpy()


def macro_paths(macro: Any, scenario: str | None = None, macro_path_id: int = 0) -> MacroPaths:
    """Read macro paths from a frame: one path (month + nine series) or a `macro_scenarios` table.

    Args:
        macro: polars or pandas. Rows may come in any order.
        scenario, macro_path_id: names given to a single path, or that override missing columns.

    Raises:
        DataError: columns or months are missing, or a month occurs twice in a path.
    """
    frame = to_polars(macro, ["month", *MACRO_NAMES], "macro")
    if "scenario" not in frame.columns or (scenario is not None and "macro_path_id" not in frame.columns):
        frame = frame.with_columns(scenario=pl.lit(scenario or "baseline"))
    if "macro_path_id" not in frame.columns:
        frame = frame.with_columns(macro_path_id=pl.lit(macro_path_id, dtype=pl.Int64))
    frame = frame.with_columns(month_index_expr("month").alias("_month")).sort(
        "scenario", "macro_path_id", "_month"
    )
    keys = frame.select("scenario", pl.col("macro_path_id").cast(pl.Int64)).unique(maintain_order=True).rows()
    if not keys:
        raise DataError("a macro table without rows", where="macro")
    start, stop = int(frame["_month"].min()), int(frame["_month"].max())  # type: ignore[arg-type]
    n_months = stop - start + 1
    months = frame["_month"].to_numpy()
    if (
        frame.height != len(keys) * n_months
        or (months.reshape(len(keys), -1) != np.arange(start, stop + 1)).any()
    ):
        raise DataError(
            "every macro path needs each month once",
            expected=f"{len(keys)} paths x {n_months} months",
            got=f"{frame.height} rows",
            where="macro",
        )
    values = frame.select(MACRO_NAMES).to_numpy().astype(float).reshape(len(keys), n_months, N_MACRO)
    if not np.isfinite(values).all():
        raise DataError("macro values must be finite", where="macro")
    return MacroPaths(values=values, start_month=start, keys=tuple((str(s), int(i)) for s, i in keys))


def single_path(
    macro: Any, start_month: object = None, scenario: str = "baseline", path_id: int = 0
) -> MacroPaths:
    """One path from a frame, or from a (T, 9) array that begins at `start_month` (ISO text or date)."""
    if isinstance(macro, np.ndarray):
        if macro.ndim != 2 or macro.shape[1] != N_MACRO or start_month is None:
            raise DataError(
                "a macro array needs a start month",
                expected=f"(T, {N_MACRO})",
                got=macro.shape,
                where="macro",
            )
        start = month_index(parse_month(start_month))  # type: ignore[arg-type]
        return MacroPaths(values=macro[None].astype(float), start_month=start, keys=((scenario, path_id),))
    paths = macro_paths(
        to_polars(macro, [], "macro").drop("scenario", "macro_path_id", strict=False), scenario, path_id
    )
    return paths
