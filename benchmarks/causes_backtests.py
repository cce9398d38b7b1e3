"""Why the 12-month backtest of the generated pool fails in some runs: what its forecasts share.

    python -m benchmarks.causes_backtests [--store data] [--seeds 4] [--write]

Reads the models of a finished run of the generated pool (`make run`) and repeats the 12-month VaR backtest of
`make fidelity`: on fresh macro paths, with the shocks that the generator shares between scenarios and with
shocks of each scenario's own; on other loans of the same world; and compares what the training pool lost with
what other pools of its size lose in that world. Places of what happened in their predicted laws are uniform
with mean one half where the laws are right.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import stats

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.periods import month_from_index
from pc_pipeline.core.rng import derive_seed
from pc_pipeline.core.store import Store
from pc_pipeline.engines.fidelity.backtests import PATHS, separate_paths, yearly_forecasts
from pc_pipeline.engines.fidelity.chain import Chain
from pc_pipeline.engines.stages.scoring import ScoringSet, fresh_test_set
from pc_pipeline.evaluation.backtests import backtest, transform
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
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
    score = stats.norm.ppf(where_RT)
    found = []
    for a, (first, path) in enumerate(keys):
        for b, (second, other) in enumerate(keys[:a]):
            if first != second and path % PATHS == other % PATHS:
                found.append(score[a] * score[b])
    return float(np.mean(found) / np.mean(score**2))


def other_loans(chain: Chain, seed: int, n_loans: int) -> ScoringSet:
    """Other loans of the same world, on paths with shocks of each scenario's own."""
    macro, known = separate_paths(chain).macro, chain.recipe.tape.generator()
    tape = LoanTapeGenerator(
        n_loans=n_loans,
        n_months=known.n_months,
        n_vintages=known.n_vintages,
        start_date=month_from_index(known.start_month),
        random_seed=derive_seed(seed, "causes", "tape"),
        world_seed=known.world_seed,
    )
    book = tape.generate_scenario(macro)
    return ScoringSet(panel=book.panel, loans=book.loans, macro=macro, world_seed=known.world_seed)


def repeat_lines(store: Path, recipe: str, seeds: int) -> list[str]:
    """The section's test on other paths: shocks shared between scenarios, and not."""
    lines = [
        "| paths | shocks | correlation between a path's scenarios | KS p | Kupiec p | mean place |",
        "|---|---|---|---|---|---|",
    ]
    for seed in range(seeds):
        for name, make in (("shared", shared_paths), ("of each scenario", separate_paths)):
            chain = stored_chain(store, recipe, derive_seed(seed, "causes") % 2**31)
            keys, realised, draws = yearly_forecasts(dataclasses.replace(chain, test=make(chain)))
            where = transform(realised.ravel(), draws.reshape(realised.size, -1)).reshape(realised.shape)
            table = backtest(realised, draws, (0.95,))
            p = dict(zip(table["test"], table["p_value"], strict=True))
            lines.append(
                f"| {seed} | {name} | {twin_correlation(where, keys):.2f} | {p['uniform transform']:.3f} | "
                f"{p['Kupiec']:.3f} | {where.mean():.3f} |"
            )
            print(lines[-1], flush=True)
    return lines


def loans_lines(store: Path, recipe: str, sizes: tuple[int, ...]) -> list[str]:
    """Expected over realised 12-month loss and mean place on other loans of the world."""
    lines = ["| loans a scenario | " + " | ".join(("all", *STANDARD_SCENARIOS)) + " | mean place |"]
    lines.append("|---" * (len(STANDARD_SCENARIOS) + 3) + "|")
    for number, n_loans in enumerate(sizes):
        chain = stored_chain(store, recipe, derive_seed(100 + number, "causes") % 2**31)
        chain = dataclasses.replace(chain, test=other_loans(chain, number, n_loans))
        keys, realised, draws = yearly_forecasts(chain)
        scenario, expected = np.array([key[0] for key in keys]), draws.mean(axis=-1)
        place = transform(realised.ravel(), draws.reshape(realised.size, -1)).mean()
        ratios = [expected.sum() / realised.sum()]
        ratios += [
            expected[scenario == name].sum() / realised[scenario == name].sum() for name in STANDARD_SCENARIOS
        ]
        lines.append(f"| {n_loans} | " + " | ".join(f"{r:.2f}" for r in ratios) + f" | {place:.3f} |")
        print(lines[-1], flush=True)
    return lines


def training_lines(store: Path, recipe: str, n_worlds: int = 16) -> list[str]:
    """What one training pool lost over what such pools lose on average."""
    chain = stored_chain(store, recipe, 1)
    known = chain.recipe.tape.generator()
    n_paths, start = chain.recipe.tape.n_paths, month_from_index(known.start_month)

    def rates(panel: pl.DataFrame, loans: pl.DataFrame) -> np.ndarray:
        lost = dict(panel.group_by("scenario").agg(pl.col("loss_amount").sum()).rows())
        return np.array([lost[name] for name in STANDARD_SCENARIOS]) / loans["original_balance"].sum()

    drawn = []
    for number in range(n_worlds):
        fresh = MacroScenarioGenerator(n_months=known.n_months, start_date=start, random_seed=7000 + number)
        macro = pl.concat([macro_table(fresh, name, n_paths) for name in STANDARD_SCENARIOS])
        tape = LoanTapeGenerator(
            n_loans=chain.recipe.tape.n_loans,
            n_months=known.n_months,
            n_vintages=known.n_vintages,
            start_date=start,
            random_seed=900 + number,
            world_seed=known.world_seed,
        )
        book = tape.generate_scenario(macro)
        drawn.append(rates(book.panel, book.loans))
    mean, sd = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1)
    ours = rates(chain.panel, chain.tape)
    lines = ["| scenario | loss rate, training pool | mean of such pools | ratio | relative sd |"]
    lines.append("|---|---|---|---|---|")
    for k, name in enumerate(STANDARD_SCENARIOS):
        ratio, spread = ours[k] / mean[k], sd[k] / mean[k]
        lines.append(f"| {name} | {ours[k]:.4f} | {mean[k]:.4f} | {ratio:.2f} | {spread:.3f} |")
    return lines


def main() -> None:
    """Repeat, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("data"))
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = machine_line()
    training = training_lines(options.store, options.recipe)
    others = loans_lines(options.store, options.recipe, (1000, 1000, 1000, 6000))
    lines = [
        "# 12-month VaR backtest of the generated pool, repeated",
        "",
        f"{machine} Models of a finished run, recipe `{options.recipe}`; {PATHS} fresh paths per scenario "
        "and seed, 4 origins.",
        "",
        f"Other macro paths, the section's own {LOANS} test loans a scenario; KS: uniform transform, "
        "forecasts taken as independent:",
        "",
        *repeat_lines(options.store, options.recipe, options.seeds),
        "",
        "Other loans of the world as well; expected over realised 12-month loss:",
        "",
        *others,
        "",
        "What the training pool had lost, against 16 other pools of its size in the same world:",
        "",
        *training,
    ]
    text = "\n".join(lines) + "\n"
    if options.write:
        write_result(Path(__file__).parent / "results", "causes-backtests", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
