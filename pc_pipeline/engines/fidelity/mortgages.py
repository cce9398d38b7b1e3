"""Mortgages through 2008: learned to 2007, judged on 2008-10; and refitted every year.

Here: `measure`. Not here: the models (`evaluation.structural`). Quarters are numbered as delivered, from 1,
the quarter of 2000-04.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from pc_pipeline.engines.fidelity.table import Request, figure, figures
from pc_pipeline.evaluation.metrics import clustered_mean
from pc_pipeline.evaluation.structural import OUTCOMES, SETS, StructuralHazard, mortgage_rows

SECTION: Final = "mortgages"
DATA: Final = ("dcr_mortgage",)
FIRST_QUARTER: Final = 32  # 2008-01
LAST_QUARTER: Final = 43  # 2010-10
YEAR: Final = 4
GOAL: Final = 0.275


def measure(request: Request) -> pl.DataFrame:
    """Rows of the section; one note where the data are missing."""
    path = request.data / DATA[0] / "panel.parquet"
    if not path.is_file():
        return figures([figure(SECTION, "log-loss", float("nan"), note="data set missing")])
    rows = mortgage_rows(pl.read_parquet(path))
    judged = rows.filter(pl.col("time").is_between(FIRST_QUARTER, LAST_QUARTER))
    cluster = judged["id"].to_numpy()
    losses: dict[str, np.ndarray] = {}
    found: list[dict[str, Any]] = []
    for which in SETS:
        model = StructuralHazard(which)
        model.fit(rows.filter(pl.col("time") < FIRST_QUARTER))
        losses[which] = model.losses(judged)
        label = f"log-loss to 2007, {which}"
        found.append(_loss_row(label, losses[which], cluster, which == "structural", model.weights))
        if which == "structural":
            found += _counts(model.probabilities(judged), judged)
        found.append(_loss_row(f"log-loss refitted yearly, {which}", *_refitted(rows, model)))
    gain = clustered_mean(losses["three macro"] - losses["structural"], cluster)
    found.append(
        figure(
            SECTION,
            "log-loss gained on the three-macro logistic",
            gain.value,
            low=gain.value - 1.96 * gain.se,
            high=gain.value + 1.96 * gain.se,
            goal=">= 0",
            passed=gain.value >= 0,
        )
    )
    return figures(found)


def _refitted(rows: pl.DataFrame, chosen: StructuralHazard) -> tuple[Any, ...]:
    """Losses and loans of 2008-10, each year by a model that knows the years before it; weights as chosen."""
    losses, cluster = [], []
    for first in range(FIRST_QUARTER, LAST_QUARTER + 1, YEAR):
        model = StructuralHazard(chosen.which)
        model.fit(rows.filter(pl.col("time") < first), chosen.weights)
        year = rows.filter(pl.col("time").is_between(first, min(first + YEAR - 1, LAST_QUARTER)))
        losses.append(model.losses(year))
        cluster.append(year["id"].to_numpy())
    return np.concatenate(losses), np.concatenate(cluster), False, chosen.weights


def _loss_row(
    name: str, losses: np.ndarray, cluster: np.ndarray, is_goal: bool, weights: dict[float, float]
) -> dict[str, Any]:
    mean = clustered_mean(losses, cluster)
    told = ", ".join(f"C {penalty:g} {weight:.0%}" for penalty, weight in weights.items())
    return figure(
        SECTION,
        name,
        mean.value,
        low=mean.value - 1.96 * mean.se,
        high=mean.value + 1.96 * mean.se,
        goal=f"<= {GOAL}" if is_goal else "",
        passed=mean.value <= GOAL if is_goal else None,
        note=f"{len(losses)} loan-quarters; weights by forecasts of 2005-07: {told}",
    )


def _counts(p: np.ndarray, judged: pl.DataFrame) -> list[dict[str, Any]]:
    happened = judged["status_time"].to_numpy()
    return [
        figure(
            SECTION,
            f"{name}: expected / happened, structural to 2007",
            float(p[:, code].sum() / max((happened == code).sum(), 1)),
            note=f"{(happened == code).sum()} happened",
        )
        for code, name in enumerate(OUTCOMES)
        if code
    ]
