"""Training of the two loan networks against the floor: operations of a step over the measured GEMM rate.

    python -m benchmarks.training [--recipe base] [--steps 8] [--threads 1] [--write]

Per network, at the recipe's size and at that of `paper` on small data: milliseconds a step as the loop makes
it (median; float32 and bfloat16 take turns), the operations torch counts in it (forward and backward), their
floor at the rate of a large matrix product, the share of a step that goes into picking its rows, and the
memory held for the backward pass. Then the `paper` training by arithmetic: operations of all steps, and the
rate that a device must sustain to do it in a tenth of the seed's time. The macro VAE has a benchmark of its
own (`training_macro_vae.py`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loan_models import make_world
from benchmarks.machine import machine_line, write_result
from pc_pipeline.loans.features import cohort_table
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.loans.transitions import transition_table
from pc_pipeline.models.device import same_bits_twice
from pc_pipeline.models.loan_trajectory import LoanTrajectoryModel, TrajectoryConfig
from pc_pipeline.models.transition_transformer import TransitionConfig, TransitionTransformer
from pc_pipeline.recipes import Recipe, get_recipe
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import make_optimizer
from pc_pipeline.training.trajectories import batch_losses, class_rows, length_batches, trajectory_data
from pc_pipeline.training.transitions import (
    TransitionData,
    negative_log_likelihood,
    path_groups,
    transition_data,
)

LOANS, PATHS = 1500, 4  # of each scenario: enough for many batches, made in seconds
GROUP = 16
KINDS = 3  # batches that take turns: short, middling and long histories
TENTH = {"transitions": 180.0, "trajectory": 720.0}  # seconds: a tenth of 30 minutes and of 2 hours
MEMORY_MB = {"transitions": 500.0, "trajectory": 2000.0}


@dataclass
class Stepper:
    """One network with its optimiser and batches, stepped as the loop does it."""

    name: str
    model: nn.Module
    pick: Callable[[int], object]
    loss_of: Callable[[object], Tensor]
    rows_in: Callable[[object], int]
    precision: str = "float32"

    def __post_init__(self) -> None:
        self.model.train()
        self._optimizer = make_optimizer(self.model, TrainConfig(lr=1e-4))
        self.number = 0

    def step(self) -> tuple[float, float]:
        """(seconds of the whole step, of picking its rows)."""
        begin = time.perf_counter()
        batch = self.pick(self.number)
        picked = time.perf_counter() - begin
        self.number += 1
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return time.perf_counter() - begin, picked

    def counted(self) -> tuple[float, float, int]:
        """(operations of a step, most MB held for the backward pass, rows in it), over `KINDS` batches."""
        found = [self._counted(k) for k in range(KINDS)]
        operations, held, rows = zip(*found, strict=True)
        return sum(operations) / KINDS, max(held), sum(rows) // KINDS

    def _counted(self, number: int) -> tuple[float, float, int]:
        batch = self.pick(number)
        held: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            sdpa_kernel(SDPBackend.MATH),  # torch does not count inside its fused attention on a CPU
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            self.loss_of(batch).backward()
        return float(counter.get_total_flops()), sum(held.values()) / 1e6, self.rows_in(batch)

    @property
    def state_mb(self) -> float:
        """Weights, gradients and both moments."""
        return 4 * 4 * sum(p.numel() for p in self.model.parameters()) / 1e6


def _place(number: int, count: int) -> int:
    """One of `KINDS` batches evenly spread over `count`, which lie in order of length."""
    return (2 * (number % KINDS) + 1) * count // (2 * KINDS)


def transition_stepper(config: TransitionConfig, data: TransitionData, batch: int, precision: str) -> Stepper:
    """Cohort network on counts."""
    torch.manual_seed(0)
    model = TransitionTransformer(config)
    groups = path_groups(data.path_of, GROUP)
    per_step = max(1, batch // GROUP)

    def pick(number: int) -> object:
        first = _place(number, max(len(groups) - per_step, 1))
        return data.take(torch.cat(groups[first : first + per_step]))

    return Stepper(
        "transitions", model, pick, lambda rows: negative_log_likelihood(model, rows), len, precision
    )


def trajectory_stepper(
    config: TrajectoryConfig, histories: Trajectories, batch: int, precision: str
) -> Stepper:
    """Loan network on histories."""
    torch.manual_seed(0)
    model = LoanTrajectoryModel(config)
    data = trajectory_data(histories, class_rows(histories))
    model.fit_scaling(data.features, histories.scaler.reference_month)
    batches = length_batches(data.lengths, torch.arange(len(data)), batch, 0)
    generator = torch.Generator().manual_seed(0)

    def loss_of(rows: object) -> Tensor:
        state, value = batch_losses(model, rows, generator)
        return state.mean() + value

    return Stepper(
        "trajectory", model, lambda k: data.take(batches[_place(k, len(batches))]), loss_of, len, precision
    )


def gemm_rate(size: int = 768, repeats: int = 10) -> float:
    """Operations per second of a large product of single-precision matrices."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begin)
    return 2.0 * size**3 / statistics.median(times)


def measured(pair: tuple[Stepper, Stepper], steps: int) -> list[str]:
    """Table rows of a network in both precisions, taking turns."""
    times: dict[str, list[tuple[float, float]]] = {stepper.precision: [] for stepper in pair}
    with same_bits_twice():
        for round_ in range(steps + 1):
            for stepper in pair:
                taken = stepper.step()
                if round_:
                    times[stepper.precision].append(taken)
    rate = gemm_rate()
    operations, held, rows = pair[0].counted()
    lines = []
    for stepper in pair:
        whole = [t for t, _ in times[stepper.precision]]
        middle = statistics.median(whole)
        share = sum(p for _, p in times[stepper.precision]) / sum(whole)
        lines.append(
            f"| {stepper.name} | {rows} | {stepper.precision} | {1e3 * middle:.0f} "
            f"({1e3 * min(whole):.0f} .. {1e3 * max(whole):.0f}) | {operations / 1e9:.2f} | "
            f"{1e3 * operations / rate:.1f} | {operations / rate / middle:.0%} | {share:.1%} | "
            f"{held:.0f} + {stepper.state_mb:.1f} |"
        )
    return lines


def paper_lines(recipe: Recipe, counts: TransitionData, histories: Trajectories) -> list[str]:
    """The `paper` training by arithmetic from its own networks on the small data."""
    transition, trajectory = recipe.transition_transformer, recipe.loan_trajectory
    batch = trajectory.training.batch_size
    pair = (
        (transition_stepper(transition.network, counts, transition.training.batch_size, "float32"),
         recipe.tape.n_paths * 4 * (4 * recipe.tape.n_vintages) * 4 // 5, transition.training.epochs),
        (trajectory_stepper(trajectory.network, histories, batch, "float32"),
         recipe.tape.n_loans * 4 * 7 // 8, trajectory.training.epochs),
    )  # fmt: skip
    lines = []
    for stepper, rows, epochs in pair:
        operations, held, in_step = stepper.counted()
        total = operations / in_step * rows * epochs
        wanted = total / TENTH[stepper.name]
        memory = held + stepper.state_mb
        lines.append(
            f"| {stepper.name} | {rows:,} x {epochs} | {operations / in_step / 1e6:.1f} | "
            f"{total / 1e15:.2f} | {TENTH[stepper.name]:.0f} s | {wanted / 1e12:.1f} | "
            f"{memory:.0f} MB at {in_step} rows, goal below {MEMORY_MB[stepper.name]:.0f} |"
        )
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="a dated page under results/")
    options = parser.parse_args()
    machine = machine_line()
    torch.set_num_threads(options.threads)
    book, macro = make_world(LOANS, PATHS, seed=1)
    counts = transition_data(cohort_table(book.loans), transition_table(book.panel, book.loans), macro)
    histories = prepare_trajectories(book.panel, book.loans, macro)
    recipe, paper = get_recipe(options.recipe), get_recipe("paper")
    lines = []
    for sized in (recipe, paper):
        for make, stage, data in (
            (transition_stepper, sized.transition_transformer, counts),
            (trajectory_stepper, sized.loan_trajectory, histories),
        ):
            batch = min(stage.training.batch_size, 128 if sized is paper else 10**6)
            pair = tuple(make(stage.network, data, batch, kind) for kind in ("float32", "bfloat16"))
            steps = options.steps if sized is recipe else KINDS
            lines += [line.replace("| ", f"| {sized.name}, ", 1) for line in measured(pair, steps)]
            print(lines[-2], lines[-1], sep="\n", flush=True)
    text = "\n".join(
        [
            "# Training throughput",
            "",
            f"{machine} {options.threads} torch thread(s), GEMM {gemm_rate() / 1e9:.0f} GFLOP/s.",
            "",
            "| network | rows a step | precision | ms a step (range) | GFLOP a step | floor, ms | "
            "share of floor | picking rows | MB held + state |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            "## `paper`, by arithmetic",
            "",
            "| network | rows x epochs | MFLOP a row | PFLOP in all | a tenth of the seed | TFLOP/s needed | "
            "memory |",
            "|---|---|---|---|---|---|---|",
            *paper_lines(paper, counts, histories),
            "",
        ]
    )
    if options.write:
        write_result(Path(__file__).parent / "results", "training", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
