"""Small steps that analyses share: a simulated mix with all it was made of, and loans picked by a text.

Here: `simulate_mix`, `pick_loans`. Not here: the analyses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from pc_pipeline.core.errors import ConfigError
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.aggregator import PortfolioAggregator, check_mix
from pc_pipeline.engines.analysis.study import Study
from pc_pipeline.engines.macro_sources import paths_by_scenario
from pc_pipeline.engines.results import SimulationResults
from pc_pipeline.engines.tail_source import TailSource
from pc_pipeline.simulation.monte_carlo import SimulatedCash
from pc_pipeline.simulation.paths import MacroPaths
from pc_pipeline.simulation.tails import TailConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MixRun:
    """A simulated mix: macro paths (P, T, 9), cash, results, and how the paths were drawn."""

    macro_PTM: np.ndarray
    simulated: SimulatedCash
    results: SimulationResults
    source: str


def simulate_mix(
    study: Study,
    mix: Mapping[str, float],
    n_paths: int,
    *,
    is_plain: bool = False,
    config: TailConfig | None = None,
) -> MixRun:
    """Simulate a scenario mix, its paths drawn along the loss and loans' own luck taken out, or plainly.

    Args:
        is_plain: all paths alike, and nothing taken out.

    Raises:
        ConfigError: shares make no mix.
    """
    shares = check_mix(mix)
    label = " + ".join(f"{share:.0%} {name}" if len(shares) > 1 else name for name, share in shares.items())
    if is_plain:
        counts = paths_by_scenario(shares, n_paths)
        drawn = MacroPaths(
            values_PTM=np.concatenate([study.macro(name, count) for name, count in counts.items() if count]),
            scenario_P=np.repeat(list(counts), list(counts.values())),
            source="macro VAE, plain paths",
        )
        simulated = study.simulate(drawn)
    else:
        source = TailSource(study, config or TailConfig())
        drawn = source.draw_mix(shares, n_paths, study.n_months, derive_seed(study.seed, "tails"))
        simulated = study.simulate(drawn, luck=source.own_luck(drawn.values_PTM))
    results = PortfolioAggregator(study.deal).report(
        simulated, scenario=label, seeds={"study": study.seed}, model_versions=study.versions
    )
    return MixRun(macro_PTM=drawn.values_PTM, simulated=simulated, results=results, source=drawn.source)


def plain_paths(study: Study, mix: Mapping[str, float], n_paths: int) -> tuple[np.ndarray, np.ndarray]:
    """((P, T, 9) plain macro paths, (P,) scenario of each), scenarios one after the other."""
    counts = paths_by_scenario(check_mix(mix), n_paths)
    macro = np.concatenate([study.macro(name, count) for name, count in counts.items() if count])
    return macro, np.repeat(list(counts), list(counts.values()))


def pick_loans(study: Study, text: str) -> np.ndarray:
    """Rows of the pool: by loan_id, comma-separated, or by an SQL condition on the pool's columns.

    Raises:
        ConfigError: no loan fits, or the condition cannot be read.
    """
    names = [name.strip() for name in text.split(",")]
    known = study.pool["loan_id"].is_in(names).to_numpy()
    if known.sum() == len(set(names)):
        return np.flatnonzero(known)
    try:
        hit = study.pool.select(pl.sql_expr(text)).to_series()
    except (pl.exceptions.PolarsError, pl.exceptions.SQLSyntaxError) as error:
        raise ConfigError(
            "cannot read which loans", expected="loan_id, ... or a condition", got=text
        ) from error
    if hit.dtype != pl.Boolean or not hit.any():
        raise ConfigError(
            "no loan fits", expected="loan_id, ... or a condition that some loan meets", got=text
        )
    return np.flatnonzero(hit.fill_null(False).to_numpy())
