"""How much of the gap to the truth any model could close: the law itself, made to guess what nobody can know.

    python -m benchmarks.causes_bound [--recipe full] [--loans 3000] [--models FOLDER] [--write]

A loan's own effect can only be inferred from its history. The exact law with that effect integrated out,
given the moves before each month (Bayes, 15 Gauss-Hermite nodes), is the best forecast there can be for
somebody who knows everything else. The effects of (class, vintage) and of industry x region are estimated
from the training loans: the law is also run with each replaced by its posterior mean given as much
information as the recipe's training loans hold (Fisher information of the test rows, scaled). Rows that begin
delinquent are told apart.

With --models (a folder of models trained on the recipe's pool, e.g. data/models/joint_model) the same rows
are scored by the loan network, and the log-odds of moves by which it differs from the truth are laid along
the parts of the true index: what share of the weighted square each part explains, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.machine import machine_line, write_result
from pc_pipeline.core.rng import stream
from pc_pipeline.engines.stages.data import TapeConfig
from pc_pipeline.evaluation.challengers import REFERENCE, MarkovTable
from pc_pipeline.evaluation.metrics import gap_closed
from pc_pipeline.evaluation.rows import ScoringRows, scoring_rows
from pc_pipeline.loans import truth
from pc_pipeline.loans.effects import INDUSTRIES, REGIONS, codes_of, loan_effects
from pc_pipeline.loans.oracle import oracle_rows
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.loans.truth import KIND_OF_MOVE, LawConfig, kind_strengths
from pc_pipeline.models.checkpoint import load_model
from pc_pipeline.recipes import get_recipe
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import ASSET_CLASSES, STANDARD_SCENARIOS
from pc_pipeline.training.trajectories import move_probabilities

N_NODES = 15
_C, _F, _I = 0, 1, 2
MOVES = (
    (0, 1, "30dpd"),
    (1, 0, "cure"),
    (1, 2, "60dpd"),
    (2, 0, "cure"),
    (2, 3, "90dpd"),
    (3, 0, "cure"),
    (3, 4, "default"),
)
_SIGN = np.array(
    [1.0, 1.0, -1.0, -1.0]
)  # a bad index: more misses and worsenings, fewer cures and prepayments
Effects = Callable[[np.ndarray], np.ndarray]  # (L,3) true effects -> (L,3) what the forecaster takes them for


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Fresh loans of the one world, N moves in the order of `rows`."""

    seed: int
    book: LoanBook
    macro: pl.DataFrame
    judged: Trajectories
    rows: ScoringRows
    order: np.ndarray  # oracle row of each move
    reference: np.ndarray  # (N,) nats of the class x maturity table


def make_world(config: TapeConfig, n_loans: int, n_paths: int) -> World:
    """Test loans of a recipe's world, and the reference table learnt from others."""
    world_seed = config.generator().world_seed

    def some(seed: int) -> tuple[LoanBook, pl.DataFrame]:
        generator = MacroScenarioGenerator(
            n_months=config.n_months, start_date=f"{config.start_month}-01", random_seed=1000 + seed
        )
        macro = pl.concat([macro_table(generator, name, n_paths) for name in STANDARD_SCENARIOS])
        tape = LoanTapeGenerator(
            n_loans=n_loans,
            n_months=config.n_months,
            n_vintages=config.n_vintages,
            start_date=f"{config.start_month}-01",
            random_seed=seed,
            world_seed=world_seed,
        )
        return tape.generate_scenario(macro), macro

    learn, learn_macro = some(1)
    table = MarkovTable(REFERENCE, by=("asset_class", "is_final"))
    learned = prepare_trajectories(learn.panel, learn.loans, learn_macro)
    table.fit(scoring_rows(learned))
    book, macro = some(2)
    judged = prepare_trajectories(book.panel, book.loans, macro, learned.scaler)
    rows = scoring_rows(judged)
    found = oracle_rows(book.panel, book.loans, macro, world_seed=world_seed)
    keys = ["scenario", "macro_path_id", "loan_id"]
    placed = found.keys.with_row_index("row").join(judged.keys.select(keys).with_row_index("h"), on=keys)
    order = placed.sort("h", "reporting_month")["row"].to_numpy()
    p = table.probabilities(rows)
    return World(
        seed=world_seed,
        book=book,
        macro=macro,
        judged=judged,
        rows=rows,
        order=order,
        reference=_nats(p, rows.happened),
    )


@contextlib.contextmanager
def taken_for(change: Effects) -> Iterator[None]:
    """The law with the hidden effects replaced."""
    kept = truth.loan_effects
    truth.loan_effects = lambda *args: change(kept(*args))  # type: ignore[assignment]
    try:
        yield
    finally:
        truth.loan_effects = kept


def law(world: World, change: Effects) -> np.ndarray:
    """(N,7) the law's chances with other effects."""
    with taken_for(change):
        found = oracle_rows(world.book.panel, world.book.loans, world.macro, world_seed=world.seed)
    return found.probabilities[world.order]


def filtered(world: World, change: Effects) -> np.ndarray:
    """(N,) nats of the law with the loan's own effect integrated out given the moves before."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    happened, history = world.rows.happened, world.rows.history
    chance = np.empty((len(happened), N_NODES))
    for column, node in enumerate(nodes):
        p = law(world, functools.partial(_with_own, change, float(node)))
        chance[:, column] = p[np.arange(len(happened)), happened]
    logs = np.log(np.maximum(chance, 1e-300))
    total = np.cumsum(logs, axis=0) - logs  # of the moves before, all histories in one line
    first = np.flatnonzero(np.r_[True, history[1:] != history[:-1]])
    before = total - total[first][np.cumsum(np.r_[True, history[1:] != history[:-1]]) - 1]
    belief = np.log(weights / weights.sum()) + before
    belief = np.exp(belief - belief.max(axis=1, keepdims=True))
    belief /= belief.sum(axis=1, keepdims=True)
    return -np.log((belief * chance).sum(axis=1))


def information(world: World, p: np.ndarray, share: float) -> np.ndarray:
    """(N,) Fisher information of one standard normal effect of weight sqrt(share), by move."""
    slope = np.zeros((4, 7))
    strengths = kind_strengths(LawConfig()) * np.sqrt(share) * _SIGN
    slope[KIND_OF_MOVE >= 0] = strengths[KIND_OF_MOVE[KIND_OF_MOVE >= 0]]
    d = slope[world.rows.from_state]
    return (p * d**2).sum(axis=1) - (p * d).sum(axis=1) ** 2


def estimated(world: World, p: np.ndarray, train_loans: int) -> Effects:
    """Effects of cohorts and factors as far as `train_loans` loans a scenario tell them."""
    config, loans = LawConfig(), world.book.loans
    scale = train_loans / loans.height
    classes = codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class")
    vintage = loans["vintage_month"].rank("dense").to_numpy().astype(np.int64)
    pair = codes_of(loans["industry_sector"], INDUSTRIES, "industry") * len(REGIONS)
    pair = pair + codes_of(loans["geography_region"], REGIONS, "region")
    random = stream(0, "causes", "bound")
    noise = np.zeros((loans.height, 3))
    shrink = np.ones((loans.height, 3))
    for column, group, share in (
        (_C, classes * 1000 + vintage, config.cohort_share),
        (_F, pair, config.factor_share),
    ):
        by_loan = np.bincount(
            world.rows.cluster, weights=information(world, p, share), minlength=loans.height
        )
        _, place = np.unique(group, return_inverse=True)
        known = np.bincount(place, weights=by_loan) * scale
        shrink[:, column] = (known / (1 + known))[place]
        noise[:, column] = (random.standard_normal(len(known)) / np.sqrt(np.maximum(known, 1e-9)))[place]
    return lambda effects: shrink * (effects + noise)


def _with_own(change: Effects, value: float, effects: np.ndarray) -> np.ndarray:
    return _with(change(effects), _I, value)


def _with(effects: np.ndarray, column: int, value: float) -> np.ndarray:
    changed = effects.copy()
    changed[:, column] = value
    return changed


def _nats(p: np.ndarray, happened: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(p[np.arange(len(happened)), happened], 1e-12))


def bound_lines(world: World, train_loans: int, network: np.ndarray | None) -> list[str]:
    """Table of gaps closed."""
    exact = law(world, lambda effects: effects)
    happened, late = world.rows.happened, world.rows.from_state > 0
    best = _nats(exact, happened)
    told = estimated(world, exact, train_loans)
    answers = {
        "without industry x region effect": _nats(law(world, lambda e: _with(e, _F, 0.0)), happened),
        "without the loan's own effect": _nats(law(world, lambda e: _with(e, _I, 0.0)), happened),
        "without both": _nats(law(world, lambda e: _with(_with(e, _F, 0.0), _I, 0.0)), happened),
        "own effect from its history (Bayes)": filtered(world, lambda e: e),
        f"and cohorts, factors from {train_loans} loans a scenario": filtered(world, told),
        "the same from 5000": filtered(world, estimated(world, exact, 5000)),
    }
    if network is not None:
        answers["trained loan network"] = _nats(network, happened)
    lines = ["| the law | gap closed (se) | late rows (se) |", "|---|---|---|"]
    for name, nats in answers.items():
        whole = gap_closed(nats, world.reference, best, world.rows.cluster)
        part = gap_closed(nats[late], world.reference[late], best[late], world.rows.cluster[late])
        lines.append(f"| {name} | {whole.value:.3f} ({whole.se:.3f}) | {part.value:.3f} ({part.se:.3f}) |")
    gaps = [(world.reference - best).mean(), (world.reference - best)[late].mean()]
    lines += [
        "",
        f"Gap B {gaps[0]:.5f} nats a row, {gaps[1]:.5f} on the {late.sum()} late of {len(late)} rows.",
    ]
    return lines


def parts_lines(world: World, network: np.ndarray) -> list[str]:
    """Where a network's log-odds differ from the truth's, by part of the index."""
    exact, rows = law(world, lambda effects: effects), world.rows
    loans = world.book.loans[rows.cluster]
    effects = loan_effects(world.book.loans, world.seed)[rows.cluster]
    since = rows.moves["since_miss"].to_numpy()
    classes = codes_of(loans["asset_class"], ASSET_CLASSES, "asset_class")
    macro = rows.macro if rows.macro is not None else np.zeros((len(rows), 0))
    parts = {
        "level by class": np.eye(4)[classes],
        "cohort effect": effects[:, [_C]],
        "industry x region effect": effects[:, [_F]],
        "loan's own effect": effects[:, [_I]],
        "macro series": (macro - macro.mean(0)) / np.maximum(macro.std(0), 1e-9),
        "season": np.eye(12)[rows.calendar[:, 0]],
        "months since a miss": np.eye(14)[np.clip(since, -1, 12) + 1],
        "coupon": loans.select("interest_rate").to_numpy(),
    }
    lines = [
        "| from | to | rms difference | " + " | ".join(parts) + " | rest |",
        "|---" * (len(parts) + 4) + "|",
    ]
    for start, move, label in MOVES:
        at = (rows.from_state == start) & ~rows.moves["is_final"].to_numpy()
        p, q = exact[at], network[at]
        gap = np.log(q[:, move] / q[:, start]) - np.log(p[:, move] / p[:, start])
        weight = p[:, move] * p[:, start] / (p[:, move] + p[:, start])
        total = (weight * gap**2).sum()
        shares, left = [], gap.copy()
        for values in parts.values():  # one after the other, each on what is left
            x = values[at] * np.sqrt(weight)[:, None]
            beta, *_ = np.linalg.lstsq(x, left * np.sqrt(weight), rcond=None)
            after = left - values[at] @ beta
            shares.append(((weight * left**2).sum() - (weight * after**2).sum()) / total)
            left = after
        rest = (weight * left**2).sum() / total
        told = " | ".join(f"{share:.0%}" for share in (*shares, rest))
        names = ("performing", "30dpd", "60dpd", "90dpd")
        lines.append(f"| {names[start]} | {label} | {np.sqrt(total / weight.sum()):.3f} | {told} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="full")
    parser.add_argument("--loans", type=int, default=3000)
    parser.add_argument("--paths", type=int, default=8)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    machine = machine_line()
    tape = get_recipe(options.recipe).tape
    world = make_world(tape, options.loans, options.paths)
    network = None
    if options.models is not None:
        loan = load_model(options.models / "loan_trajectory")[0]
        cohort = load_model(options.models / "transition_transformer")[0]
        network = move_probabilities(loan, world.judged, cohort)
    lines = ["# What can be closed of the gap to the truth", "", machine, ""]
    lines += bound_lines(world, tape.n_loans, network)
    if network is not None:
        lines += ["", "Log-odds of the network less the truth's, share of the square by part:", ""]
        lines += parts_lines(world, network)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_result(Path(__file__).parent / "results", "causes-bound", text)


if __name__ == "__main__":
    main()
