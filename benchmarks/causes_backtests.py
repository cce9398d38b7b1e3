"""Why the 12-month backtest of the generated pool failed once: four scenarios, one record of luck.

    python -m benchmarks.causes_backtests [--store data] [--seeds 6] [--write]

Reads the models of a finished run of the generated pool (`make run`) and repeats the 12-month VaR backtest of
`make fidelity` on fresh worlds of macro paths, twice each: with the shocks that the generator shares between
scenarios, and with shocks of each scenario's own. Prints how the places of what happened in their predicted
laws go together between scenarios of one path number, and the p-values of the uniform transform that treat
all forecasts as independent.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store
from pc_pipeline.engines.fidelity.backtests import PATHS, separate_paths, yearly_forecasts
from pc_pipeline.engines.fidelity.chain import Chain
from pc_pipeline.engines.stages.scoring import ScoringSet, fresh_test_set
from pc_pipeline.evaluation.backtests import backtest, transform
from pc_pipeline.models.checkpoint import load_model
from pc_pipeline.recipes import get_recipe
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import STANDARD_SCENARIOS

LOANS = 1000  # per scenario


def stored_chain(folder: Path, recipe_name: str, test_seed: int) -> Chain:
    """The chain of a store, to be tested on paths of another seed."""
    store = Store(folder)
    models = {path.name: load_model(path) for path in sorted(store.model_folder("joint_model").iterdir())}
    recipe = get_recipe(recipe_name)
    recipe = dataclasses.replace(recipe, macro_paths=dataclasses.replace(recipe.macro_paths, seed=test_seed))
    empty = pl.DataFrame()
    return Chain(
        macro=store.read_table("macro_scenarios"),
        tape=store.read_table("loan_tape"),
        panel=store.read_table("loan_panel"),
        pool=store.read_table("pool"),
        components={},
        models=models,
        test=ScoringSet(panel=empty, loans=empty, macro=empty),
        recipe=recipe,
    )


def shared_paths(chain: Chain) -> ScoringSet:
    """Fresh loans on fresh paths of one generator: path k of every scenario has the same shocks."""
    config = chain.recipe.macro_paths
    fresh = MacroScenarioGenerator(
        n_months=config.n_months,
        start_date=f"{config.start_month}-01",
        random_seed=derive_seed(config.seed, "causes", "shared") % 2**31,
    )
    paths = pl.concat([macro_table(fresh, name, PATHS) for name in STANDARD_SCENARIOS])
    return fresh_test_set(chain.recipe.tape.generator(), paths, n_loans=LOANS)


def twin_correlation(where_RT: np.ndarray, keys: list[tuple[str, int]]) -> float:
    """Mean correlation of normal scores between scenarios of the same path number (modulo `PATHS`)."""
    from scipy import stats

    score = stats.norm.ppf(where_RT)
    found = []
    for a, (first, path) in enumerate(keys):
        for b, (second, other) in enumerate(keys[:a]):
            if first != second and path % PATHS == other % PATHS:
                found.append(score[a] * score[b])
    return float(np.mean(found) / np.mean(score**2))


def main() -> None:
    """Repeat, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("data"))
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    machine = machine_line()
    lines = [
        "# 12-month VaR backtest of the generated pool, repeated",
        "",
        f"{machine} Models of a finished run, recipe `{options.recipe}`; {LOANS} fresh loans and {PATHS} "
        "fresh paths per scenario and seed, 4 origins. KS: uniform transform, forecasts taken as independent.",
        "",
        "| seed | shocks | correlation between a path's scenarios | KS p | Kupiec p | mean place |",
        "|---|---|---|---|---|---|",
    ]
    for seed in range(options.seeds):
        for name, make in (("shared", shared_paths), ("of each scenario", separate_paths)):
            chain = stored_chain(options.store, options.recipe, derive_seed(seed, "causes") % 2**31)
            chain = dataclasses.replace(chain, test=make(chain))
            keys, realised, draws = yearly_forecasts(chain)
            where = transform(realised.ravel(), draws.reshape(realised.size, -1)).reshape(realised.shape)
            table = backtest(realised, draws, (0.95,))
            p = dict(zip(table["test"], table["p_value"], strict=True))
            lines.append(
                f"| {seed} | {name} | {twin_correlation(where, keys):.2f} | {p['uniform transform']:.3f} | "
                f"{p['Kupiec']:.3f} | {where.mean():.3f} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if options.write:
        write_result(Path(__file__).parent / "results", "causes-backtests", text)


if __name__ == "__main__":
    main()
