"""How much of the gap from the class x maturity table to the truth the loan networks close.

    python -m benchmarks.loan_models --loans 5000 --paths 8            base size, about a minute on one core
    python -m benchmarks.loan_models --loans 20000 --paths 64 --width 48 --heads 4 --epochs 8        full size

Trains on generated loans of all four scenarios; tests on new loans on new macro paths of the same world.
Prints the scoring table with standard errors clustered by loan. Nothing is written.
"""

from __future__ import annotations

import argparse
import time

import polars as pl
import torch

from pc_pipeline.evaluation.challengers import standard_challengers
from pc_pipeline.evaluation.rows import scoring_rows
from pc_pipeline.evaluation.scoring import scoring_table
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.oracle import oracle_rows
from pc_pipeline.loans.panel_generator import LoanBook
from pc_pipeline.loans.tape_generator import LoanTapeGenerator
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.scenarios.generator import MacroScenarioGenerator, macro_table
from pc_pipeline.schemas.units import STANDARD_SCENARIOS
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.trajectories import TrajectoryTrainer, move_probabilities
from pc_pipeline.training.transitions import TransitionTrainer

WORLD = 7


def make_world(n_loans: int, n_paths: int, seed: int) -> tuple[LoanBook, pl.DataFrame]:
    """Loans along `n_paths` macro paths of each scenario, in the one world."""
    macro = MacroScenarioGenerator(n_months=60, random_seed=11 * seed)
    table = pl.concat([macro_table(macro, name, n_paths) for name in STANDARD_SCENARIOS])
    tape = LoanTapeGenerator(n_loans=n_loans, n_months=60, random_seed=seed, world_seed=WORLD)
    return tape.generate_scenario(table), table


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "loans": 5000, "paths": 8, "width": 32, "heads": 2, "layers": 2, "transition-epochs": 4,
        "epochs": 10, "batch-size": 256, "threads": 1, "seed": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rivals", action="store_true", help="the logistic and the boosted trees too")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    training = TrainConfig(n_threads=options.threads, patience=5, seed=options.seed)
    size = {"d_model": options.width, "n_heads": options.heads, "n_layers": options.layers}

    book, macro = make_world(options.loans, options.paths, seed=1)
    fresh, fresh_macro = make_world(4000, 8, seed=2)
    histories = prepare_trajectories(book.panel, book.loans, macro)
    test = prepare_trajectories(fresh.panel, fresh.loans, fresh_macro, histories.scaler)

    started = time.monotonic()
    cohort = TransitionTransformer(TransitionConfig(**size))
    counts = transition_table(book.panel, book.loans)
    TransitionTrainer(cohort, lr=1e-3, config=training).fit(
        cohort_table(book.loans), counts, macro, epochs=options.transition_epochs, batch_size=128
    )
    print(f"cohort network {time.monotonic() - started:.0f} s", flush=True)
    started = time.monotonic()
    loan = LoanTrajectoryModel(TrajectoryConfig(**size, dropout=options.dropout, diffusion_steps=50))
    TrajectoryTrainer(loan, lr=3e-3, config=training).fit(
        book.loans, histories, epochs=options.epochs, batch_size=options.batch_size, transition_model=cohort
    )
    print(f"loan network {time.monotonic() - started:.0f} s", flush=True)

    table = scoring_table(
        scoring_rows(test),
        training=scoring_rows(histories),
        models={
            "cohort network": move_probabilities(None, test, cohort),
            "loan network": move_probabilities(loan, test, cohort),
        },
        oracle=oracle_rows(fresh.panel, fresh.loans, fresh_macro, world_seed=WORLD).probabilities,
        challengers=standard_challengers(200_000 if options.rivals else 0),
    )
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=200, float_precision=5):
        print(table)


if __name__ == "__main__":
    main()
