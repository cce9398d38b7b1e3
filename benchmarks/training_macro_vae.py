"""Training of the macro VAE against its floor: the arithmetic of the networks over the measured GEMM rate.

    python benchmarks/training_macro_vae.py [--recipe full] [--steps 12] [--threads 1] [--write]

Per batch size and precision, interleaved: milliseconds a step (median), paths per second, and the floor:
operations of a step counted from the layers' shapes (forward; backward twice as much) over the measured
rate of a plain matrix product of the encoder's own sizes. Then memory of the paper network (child process),
and the seed figures (200 epochs in 10 minutes, 100 MB) projected: milliseconds a step times steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import machine_line, write_result

from pc_pipeline.models.device import same_bits_twice
from pc_pipeline.models.macro_vae import MacroVAE, MacroVAEConfig
from pc_pipeline.recipes import get_recipe
from pc_pipeline.scenarios.generator import MacroScenarioGenerator
from pc_pipeline.schemas.units import N_MACRO, STANDARD_SCENARIOS
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import make_optimizer
from pc_pipeline.training.macro_start import warm_start

BATCHES = (32, 128, 256, 512)
PAPER_EPOCHS, PAPER_SECONDS, PAPER_MB = 200, 600.0, 100.0


def operations_per_path(config: MacroVAEConfig) -> float:
    """Of one training step per path: GRU gates, head, triangular solves; backward = 2 x forward."""
    months, label = config.seq_length, 8

    def gru(inputs: int, width: int) -> float:
        return 2 * 3 * width * (inputs + width)

    outputs = 2 * N_MACRO + N_MACRO * (N_MACRO - 1) // 2
    encoder = gru(N_MACRO + label, config.hidden_dim) + (config.n_layers - 1) * gru(
        config.hidden_dim, config.hidden_dim
    )
    decoder = gru(N_MACRO + label + 2, config.decoder_dim) + 2 * config.decoder_dim * outputs + 3 * N_MACRO**2
    return 3.0 * months * (encoder + decoder)


def gemm_rate(rows: int, inner: int, columns: int, repeats: int = 30) -> float:
    """Floating-point operations per second of a plain product (rows x inner) (inner x columns)."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begin)
    return 2.0 * rows * inner * columns / statistics.median(times)


class Stepper:
    """One training step as the loop makes it, on batches of a size."""

    def __init__(self, config: MacroVAEConfig, batch: int, precision: str) -> None:
        torch.manual_seed(0)
        self._model, self._batch, self._is_half = MacroVAE(config), batch, precision == "bfloat16"
        generator = MacroScenarioGenerator(config.seq_length)
        paths = [generator.generate_paths(name, max(32, batch // 4)) for name in STANDARD_SCENARIOS]
        self._x = torch.cat([torch.tensor(p, dtype=torch.float32) for p in paths])
        self._codes = torch.arange(4).repeat_interleave(len(paths[0]))
        warm_start(self._model, self._x, self._codes)
        self._optimizer = make_optimizer(self._model, TrainConfig(lr=1e-4))
        self._rows = torch.randperm(len(self._x))[:batch]

    def seconds(self) -> float:
        """Wall clock of one step."""
        begin = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._is_half):
            loss = self._model.loss(self._x[self._rows], self._codes[self._rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        return time.perf_counter() - begin

    @property
    def state_mb(self) -> float:
        """Weights, gradients and both AdamW moments, MB."""
        return 4 * sum(p.numel() for p in self._model.parameters()) * 4 / 1e6


def measured(config: MacroVAEConfig, steps: int) -> list[dict[str, float | str]]:
    """One row per batch size and precision; the kinds take turns step by step."""
    kinds = [(batch, precision) for batch in BATCHES for precision in ("float32", "bfloat16")]
    steppers = {kind: Stepper(config, *kind) for kind in kinds}
    times: dict[tuple[int, str], list[float]] = {kind: [] for kind in kinds}
    with same_bits_twice():
        for round_ in range(steps + 2):
            for kind, stepper in steppers.items():
                seconds = stepper.seconds()
                if round_ >= 2:
                    times[kind].append(seconds)
    rows: list[dict[str, float | str]] = []
    for (batch, precision), taken in times.items():
        middle = statistics.median(taken)
        work = operations_per_path(config) * batch
        small = gemm_rate(batch, config.hidden_dim, 3 * config.hidden_dim)
        rows.append(
            {
                "batch": batch,
                "precision": precision,
                "ms": 1e3 * middle,
                "low": 1e3 * min(taken),
                "high": 1e3 * max(taken),
                "paths": batch / middle,
                "floor_ms": 1e3 * work / small,
                "ratio": middle * small / work,
            }
        )
    return rows


def resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def three_steps(stepper: Stepper) -> tuple[float, float]:
    """(resident MB before, peak of three steps); the kernel's peak counter is reset first."""
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        stepper.seconds()
    return before, resident_mb("VmHWM")


def peak_mb(config: MacroVAEConfig, batch: int) -> tuple[float, float]:
    """`three_steps` in a child process, where nothing else lives."""
    sizes = ", ".join(f"{k}={getattr(config, k)}" for k in ("latent_dim", "hidden_dim", "n_layers"))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from training_macro_vae import MacroVAEConfig, Stepper, three_steps;"
        f"print(*three_steps(Stepper(MacroVAEConfig({sizes}), {batch}, 'float32')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    before, after = (float(part) for part in done.stdout.split())
    return before, after


def note(recipe: str, config: MacroVAEConfig, rows: list[dict[str, float | str]], threads: int) -> str:
    """The dated page."""
    head = (
        "# Training of the macro VAE",
        "",
        f"{machine_line()} {threads} thread(s).",
        f"`python benchmarks/training_macro_vae.py --recipe {recipe} --write`",
        "",
        f"Recipe `{recipe}`: encoder {config.hidden_dim} x {config.n_layers}, decoder {config.decoder_dim},",
        f"{config.latent_dim} latents, {config.seq_length} months;",
        f"{operations_per_path(config) / 1e6:.2f} MFLOP a path and step. A product of 1024 x 1024 x 1024",
        f"runs at {gemm_rate(1024, 1024, 1024) / 1e9:.0f} GFLOP/s; the floor takes the rate of one of the",
        "encoder's own sizes (batch x width by width x 3 widths).",
        "",
        "| batch | precision | ms a step (lowest - highest) | paths/s | floor, ms | over the floor |",
        "|---|---|---|---|---|---|",
    )
    cells = [
        f"| {r['batch']} | {r['precision']} | {r['ms']:.1f} ({r['low']:.1f} - {r['high']:.1f}) "
        f"| {r['paths']:.0f} | {r['floor_ms']:.1f} | {r['ratio']:.1f} |"
        for r in rows
    ]
    return "\n".join([*head, *cells])


def projection(rows: list[dict[str, float | str]], config: MacroVAEConfig) -> str:
    """The seed figures on this CPU, with the arithmetic."""
    recipe = get_recipe("paper")
    paper, n_paths = recipe.macro_vae, 4 * recipe.macro_paths.n_paths
    scale = operations_per_path(paper.network) / operations_per_path(config)
    plain = {int(r["batch"]): r for r in rows if r["precision"] == "float32"}
    lines = [
        "",
        f"Seed figures: {PAPER_EPOCHS} epochs in {PAPER_SECONDS / 60:.0f} minutes, {PAPER_MB:.0f} MB;",
        f"on how many paths is not said. The paper network does {scale:.1f} times this one's arithmetic.",
        f"Projected for {PAPER_EPOCHS} epochs over N paths on this CPU, seconds:",
        "",
        "| batch | arithmetic | N = 500 | " + f"N = {n_paths} (paper recipe) |",
        "|---|---|---|---|",
    ]
    for batch, row in plain.items():
        each = float(row["ms"]) * scale / 1e3
        times = [PAPER_EPOCHS * math.ceil(n / batch) * each for n in (500, n_paths)]
        lines.append(
            f"| {batch} | 200 x ceil(N / {batch}) x {float(row['ms']):.1f} ms x {scale:.1f} "
            f"| {times[0]:.0f} | {times[1]:.0f} |"
        )
    before, after = peak_mb(paper.network, paper.training.batch_size)
    state = 16 * sum(p.numel() for p in MacroVAE(paper.network).parameters()) / 1e6
    lines += [
        "",
        f"Memory of the paper network at batch {paper.training.batch_size}: weights, gradients and moments",
        f"{state:.1f} MB; resident {before:.0f} MB before the first step (Python, torch, paths),",
        f"{after:.0f} MB at the peak of three steps: {after - before:.0f} MB for training.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; with --write, keep the note."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="full")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = dataclasses.replace(get_recipe(arguments.recipe).macro_vae.network, seq_length=60)
    rows = measured(config, arguments.steps)
    text = note(arguments.recipe, config, rows, arguments.threads) + "\n" + projection(rows, config) + "\n"
    if arguments.write:
        write_result(Path(__file__).parent / "results", "training-macro-vae", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
