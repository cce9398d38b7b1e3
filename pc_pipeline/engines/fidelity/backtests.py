"""VaR backtests: do simulated laws of default rates and losses hold what they promise on data not seen?

Here: `measure`; forecasts of fresh generated loans, month by month and year by year. Not here: the tests
(`evaluation.backtests`), the trained chain (`chain`).

Monthly: each loan's chance of default one month ahead, given its own past and the month's macro; defaults are
drawn loan by loan, severities from those of training. Yearly, rolling: the pool as it stands at an origin,
macro paths that go on from where the economy stands (the macro model's own innovations up to the
origin, fresh ones after), loans by the compiled models. Nothing is fitted to the tested loans or paths.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.rng import derive_seed, stream
from pc_pipeline.engines.fidelity.chain import Chain, trained_chain
from pc_pipeline.engines.fidelity.portfolio import LivedPool, lived_pools, simulated_losses
from pc_pipeline.engines.fidelity.table import Request, figure, figures
from pc_pipeline.evaluation.backtests import SIGNIFICANCE, backtest
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.schemas.states import LoanState
from pc_pipeline.schemas.units import ASSET_CLASSES, canonical_scenario
from pc_pipeline.training.trajectories import move_probabilities

SECTION: Final = "backtests"
FIRST_MONTH: Final = 12  # of the paths: pools are whole from here on
ORIGINS: Final = (12, 24, 36, 48)
YEAR: Final = 12
N_DRAWS: Final = 400


def measure(request: Request) -> pl.DataFrame:
    """All figures of the section."""
    chain = trained_chain(request)
    rows = [*_monthly_rows(chain), *_yearly_rows(chain)]
    return figures(rows)


def test_rows(label: str, table: pl.DataFrame, note: str) -> list[dict[str, Any]]:
    """A backtest's rows as figures: the p-value is the value, at least 5 % the goal."""
    rows = []
    for row in table.iter_rows(named=True):
        level = "" if row["level"] is None else f" {row['level']:.0%}"
        hits = "" if row["hits"] is None else f"{row['hits']} exceptions, {row['expected']:.1f} expected; "
        rows.append(
            figure(
                SECTION,
                f"{label}{level}: {row['test']}, p-value",
                row["p_value"],
                goal=f">= {SIGNIFICANCE:g}",
                passed=row["passed"],
                note=f"{hits}{row['n']} forecasts; {note}",
            )
        )
    return rows


# ---- month by month -----------------------------------------------------------------------------


def _monthly_rows(chain: Chain) -> list[dict[str, Any]]:
    test = chain.test
    learned = prepare_trajectories(chain.panel, chain.tape, chain.macro)
    judged = prepare_trajectories(test.panel, test.loans, test.macro, scaler=learned.scaler)
    chances = move_probabilities(
        chain.models["loan_trajectory"][0], judged, chain.models["transition_transformer"][0]
    )
    severities = observed_severities(learned)
    defaults, losses = monthly_forecasts(judged, chances, severities, chain.recipe.seed)
    note = "fresh loans and macro paths, given the month's macro"
    found = test_rows("monthly defaults, VaR", backtest(*defaults, seed=chain.recipe.seed), note)
    return found + test_rows("monthly loss, VaR", backtest(*losses, seed=chain.recipe.seed), note)


def observed_severities(learned: Trajectories) -> list[np.ndarray]:
    """Severities of observed defaults by asset class; all of them where a class has none, else one half."""
    code = np.nan_to_num(learned.features[:, : len(ASSET_CLASSES)]).argmax(1)
    severity = 1.0 - learned.recovery_rate.astype(float)
    seen = np.isfinite(severity)
    pooled = severity[seen] if seen.any() else np.array([0.5])
    return [
        severity[seen & (code == k)] if (seen & (code == k)).any() else pooled
        for k in range(len(ASSET_CLASSES))
    ]


Forecasts = tuple[np.ndarray, np.ndarray]


def monthly_forecasts(
    judged: Trajectories,
    chances: np.ndarray,
    severities: list[np.ndarray],
    seed: int,
    *,
    sequence: np.ndarray | None = None,
    first_month: int | None = None,
    event: int = LoanState.default,
) -> tuple[Forecasts, Forecasts]:
    """((realised (R, T), draws (R, T, S)) of event counts, the same of losses in currency).

    Args:
        judged: histories. chances: (N, 7) one month ahead, in the order of `judged.mask`.
        severities: observed ones by class. sequence: (H,) which sequence a history belongs to; None: its
            macro path. first_month: calendar month index to begin at; None is `FIRST_MONTH` after the first.
        event: state whose entry is counted.
    """
    history, month = np.nonzero(judged.mask)
    calendar = judged.start_month[history] + month
    start = int(calendar.min()) + FIRST_MONTH if first_month is None else first_month
    if sequence is None:
        keys = judged.keys.select(pl.struct("scenario", "macro_path_id").rank("dense") - 1).to_series()
        sequence = keys.to_numpy().astype(np.int64)
    used = calendar >= start
    history, month, calendar, chance = history[used], month[used], calendar[used], chances[used, event]
    states = judged.states[history, month]
    before = np.where(
        month == 0, judged.initial_balance[history], judged.balances[history, np.maximum(month - 1, 0)]
    )
    code = np.nan_to_num(judged.features[:, : len(ASSET_CLASSES)]).argmax(1)[history]
    shape = (int(sequence.max()) + 1, int(calendar.max()) - start + 1)
    cell = sequence[history] * shape[1] + calendar - start
    counted = np.bincount(cell, weights=states == event, minlength=shape[0] * shape[1])
    lost = np.bincount(cell, weights=judged.losses[history, month], minlength=shape[0] * shape[1])
    counts, losses = (np.zeros((shape[0] * shape[1], N_DRAWS)) for _ in range(2))
    random = stream(seed, "fidelity", "monthly")
    order = np.argsort(cell, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        hit = random.random((len(rows), N_DRAWS)) < chance[rows, None]
        counts[cell[rows[0]]] = hit.sum(axis=0)
        loan, draw = np.nonzero(hit)
        if len(loan):
            drawn = np.array([random.choice(severities[k]) for k in code[rows[loan]]])
            np.add.at(losses[cell[rows[0]]], draw, drawn * before[rows[loan]])
    return (
        (counted.reshape(shape), counts.reshape(*shape, N_DRAWS)),
        (lost.reshape(shape), losses.reshape(*shape, N_DRAWS)),
    )


# ---- year by year -------------------------------------------------------------------------------


def _yearly_rows(chain: Chain) -> list[dict[str, Any]]:
    """Rolling origins: one forecast per macro path and origin."""
    vae, paths = chain.models["macro_vae"][0], macro_paths(chain.test.macro)
    place = {key: row for row, key in enumerate(paths.keys)}
    realised: dict[tuple[str, int], list[float]] = {}
    draws: dict[tuple[str, int], list[np.ndarray]] = {}
    for origin in [k for k in ORIGINS if k + YEAR <= paths.n_months]:
        for lived in lived_pools(chain, origin, YEAR):
            key = (lived.scenario, lived.path)
            seed = derive_seed(chain.recipe.seed, "fidelity", "yearly", *key, origin)
            ahead = continued_paths(vae, paths.values[place[key]], lived.scenario, origin, YEAR, seed)
            realised.setdefault(key, []).append(lived.realised)
            draws.setdefault(key, []).append(_losses(chain, lived, ahead, seed))
    most = max((len(values) for values in realised.values()), default=0)
    whole = [key for key, values in realised.items() if len(values) == most]
    if not whole:
        return []
    table = backtest(
        np.array([realised[key] for key in whole]), np.array([draws[key] for key in whole]), (0.95,)
    )
    note = f"{len(whole)} fresh paths, {most} origins each, macro simulated"
    return test_rows("12-month loss, rolling origins, VaR", table, note)


def _losses(chain: Chain, lived: LivedPool, macro_PTM: np.ndarray, seed: int) -> np.ndarray:
    return simulated_losses(chain, lived, macro_PTM, seed)


@torch.no_grad()
def continued_paths(
    vae: MacroVAE, path_TM: np.ndarray, scenario: str, origin: int, n_months: int, seed: int
) -> np.ndarray:
    """(N_DRAWS, n_months, 9) ways a path may go on from month `origin`, given its first `origin` months.

    The macro model's innovations are independent standard normal and determine the path, so: those of the
    path up to the origin, fresh ones after.
    """
    code = torch.tensor([vae.scenario_code(canonical_scenario(scenario))])
    past, _ = vae.innovations(torch.from_numpy(path_TM[None]).float(), code)
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(N_DRAWS, *past.shape[1:], generator=generator)
    eps[:, :origin] = past[:, :origin]
    paths = vae.to_units(vae.roll(eps, code.expand(N_DRAWS)))
    return paths[:, origin : origin + n_months].double().numpy()
