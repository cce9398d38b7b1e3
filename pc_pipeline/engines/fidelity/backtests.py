"""VaR backtests: do simulated laws of default rates and losses hold what they promise on data not seen?

Here: `measure`; forecasts of fresh generated loans, month by month and year by year. Not here: the tests
(`evaluation.backtests`), the trained chain (`chain`), the real pool's record (`auto_record`).

Monthly: each loan's chance of default one month ahead, given its own past and the month's macro; defaults are
drawn loan by loan, severities from those of training. Yearly, rolling: the pool as it stands at an origin,
macro paths that go on from where the economy stands (the macro model's own innovations up to the
origin, fresh ones after), loans by the compiled models. Nothing is fitted to the tested loans or paths.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.fidelity.auto_record import DATA, auto_rows
from pc_pipeline.engines.fidelity.chain import Chain, trained_chain
from pc_pipeline.engines.fidelity.forecasts import (
    N_DRAWS,
    SECTION,
    monthly_forecasts,
    observed_severities,
    test_rows,
)
from pc_pipeline.engines.fidelity.portfolio import lived_pools, simulated_losses
from pc_pipeline.engines.fidelity.table import Request, figure, figures
from pc_pipeline.engines.stages.scoring import ScoringSet, fresh_test_set
from pc_pipeline.evaluation.backtests import SIGNIFICANCE, backtest, holm
from pc_pipeline.loans.macro_index import macro_paths
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.models.macro_vae import MacroVAE
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import STANDARD_SCENARIOS, canonical_scenario
from pc_pipeline.training.trajectories import move_probabilities

__all__ = ["DATA", "continued_paths", "measure", "separate_paths", "together", "yearly_forecasts"]

ORIGINS: Final = (12, 24, 36, 48)
YEAR: Final = 12
PATHS: Final = 8  # per scenario
LOANS: Final = 1000  # per scenario


def measure(request: Request) -> pl.DataFrame:
    """All figures of the section."""
    chain = trained_chain(request)
    chain = dataclasses.replace(chain, test=separate_paths(chain))
    rows = [*_monthly_rows(chain), *_yearly_rows(chain), *auto_rows(request)]
    return figures([*rows, *together(rows)])


def together(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One figure of all tests: the smallest p-value after Holm, and how many fail by chance alone."""
    p = np.array([row["value"] for row in rows if row["figure"].endswith("p-value")])
    if not p.size:
        return []
    adjusted, failed = float(holm(p).min()), int((p < SIGNIFICANCE).sum())
    return [
        figure(
            SECTION,
            "all tests together: smallest p-value after Holm",
            adjusted,
            goal=f">= {SIGNIFICANCE:g}",
            passed=adjusted >= SIGNIFICANCE,
            note=f"{p.size} tests, {failed} below {SIGNIFICANCE:g} one by one; {SIGNIFICANCE * p.size:.1f} "
            "expected of right forecasts",
        )
    ]


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


# ---- year by year -------------------------------------------------------------------------------


def _yearly_rows(chain: Chain) -> list[dict[str, Any]]:
    keys, realised, draws = yearly_forecasts(chain)
    if not keys:
        return []
    note = f"{len(keys)} fresh paths, {realised.shape[1]} origins each, macro simulated"
    return test_rows("12-month loss, rolling origins, VaR", backtest(realised, draws, (0.95,)), note)


def yearly_forecasts(chain: Chain) -> tuple[list[tuple[str, int]], np.ndarray, np.ndarray]:
    """(R paths by scenario and number, realised losses (R, T), draws (R, T, S)) of T rolling origins."""
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
            draws.setdefault(key, []).append(simulated_losses(chain, lived, ahead, seed))
    most = max((len(values) for values in realised.values()), default=0)
    whole = [key for key, values in realised.items() if len(values) == most]
    return whole, np.array([realised[key] for key in whole]), np.array([draws[key] for key in whole])


def separate_paths(chain: Chain) -> ScoringSet:
    """Fresh loans on fresh paths, each scenario with shocks and luck of its own.

    One generator gives path k of every scenario the same shocks, and its loans the same draws: one record
    would be counted as four.
    """
    config = chain.recipe.macro_paths
    paths = [
        macro_table(
            MacroScenarioGenerator(
                n_months=config.n_months,
                start_date=f"{config.start_month}-01",
                random_seed=derive_seed(config.seed, "fidelity", "backtests", name) % 2**31,
            ),
            name,
            PATHS,
        ).with_columns(pl.col("macro_path_id") + PATHS * number)
        for number, name in enumerate(STANDARD_SCENARIOS)
    ]
    tape = chain.recipe.tape
    return fresh_test_set(tape.generator(), pl.concat(paths), n_loans=min(tape.n_loans, LOANS))


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
