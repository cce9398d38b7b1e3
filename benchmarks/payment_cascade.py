"""Speed of the payment cascade: sampling against a loop and deepecho's PAR, training against nn.LSTM.

    python benchmarks/payment_cascade.py [--rounds 7] [--skip-training] [--out benchmarks/results]

Sampling is checked first: the same network, float32 against bfloat16, gives the same status shares within
noise, and a history does not depend on its batch. Ratios are medians of interleaved rounds (A B A B). The
loop takes one loan and one month at a time through nn.LSTM, as an unbatched generator does. deepecho is
optional (pip install deepecho): its PAR model, trained on the same table.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import polars as pl
import torch

from benchmarks.machine import machine_line, write_result
from pc_pipeline.engines.cascade_data import CascadeHistories
from pc_pipeline.engines.payment_cascade import LSTMCascadeGenerator, training_data
from pc_pipeline.loans.borrower_features import borrower_features
from pc_pipeline.loans.payment_status import trim_after_end
from pc_pipeline.loans.status_law import KnownHistories, known_histories
from pc_pipeline.models.payment_cascade import CascadeConfig, LSTMCascadeModel
from pc_pipeline.training.config import TrainConfig
from pc_pipeline.training.loop import torch_threads
from pc_pipeline.training.payment_cascade import CascadeData, CascadeTrainer

MONTHS = 24
LOOP_LOANS = 60


def trained() -> tuple[LSTMCascadeGenerator, KnownHistories]:
    """A network of the stated size (64 x 2), trained a little, and borrowers."""
    known = known_histories(6000, MONTHS, seed=1)
    histories = CascadeHistories(codes=trim_after_end(known.codes), features=known.features)
    return LSTMCascadeGenerator(epochs=2, batch_size=512).fit_histories(histories), known


def one_loan_loop(model: LSTMCascadeModel, borrowers: list[dict[str, Any]], months: int) -> list[list[int]]:
    """The unbatched generator: every loan and month is one call of the network."""
    made = []
    with torch.inference_mode(), torch_threads(1):  # one row at a time: a second thread only costs
        for borrower in borrowers:
            x = model.scaled(torch.from_numpy(borrower_features(borrower)))
            padding = torch.zeros(1, model.lstm.input_size - model.config.hidden_dim // 2 - x.shape[1])
            status, state, row = 8, None, []
            for month in range(months):
                inputs = torch.cat([model.status_embedding(torch.tensor([status])), x, padding], -1)
                hidden, state = model.lstm(inputs[:, None], state)
                logits = model.fc(hidden[:, 0]) + model.log_prior[status]
                p = torch.softmax(logits.masked_fill(~model.allowed[status], -1e4), -1)
                status = 0 if month == 0 else int(torch.multinomial(p[0], 1))
                row.append(status)
                if status >= 5:
                    break
            made.append(row)
    return made


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def check(generator: LSTMCascadeGenerator, frame: pl.DataFrame) -> str:
    """Correctness before speed."""
    fast = generator.generate_sequences(frame, MONTHS, seed=3).codes
    part = generator.generate_sequences(frame[100:103], MONTHS, seed=3, numbers=np.arange(100, 103)).codes
    if not np.array_equal(part, fast[100:103]):
        raise SystemExit("a history depends on its batch: no speed is worth quoting")
    exact = LSTMCascadeGenerator(precision="float32")
    exact._model, exact.reason = generator.model, "check"
    slow = exact.generate_sequences(frame, MONTHS, seed=4).codes
    shares = [np.bincount(codes[:, -1], minlength=8) / len(codes) for codes in (fast, slow)]
    error = np.sqrt((shares[0] * (1 - shares[0]) + shares[1] * (1 - shares[1])) / len(frame) + 1e-12)
    worst = float(np.abs((shares[0] - shares[1]) / error).max())
    if worst > 4.5:
        raise SystemExit(f"bfloat16 and float32 disagree by {worst:.1f} standard errors")
    return f"Checked: histories independent of their batch; bfloat16 against float32 within {worst:.1f} se."


def sampling(generator: LSTMCascadeGenerator, known: KnownHistories, rounds: int) -> list[str]:
    """Batched against one loan at a time, at two sizes; records; growth."""
    model = generator.model
    if model is None:
        raise SystemExit("nothing was trained")
    frames = {n: known.borrowers.sample(n, with_replacement=True, seed=1) for n in (10_000, 100_000)}
    lines = [check(generator, frames[10_000]), ""]
    few = known.borrowers.head(LOOP_LOANS).to_dicts()
    for frame in frames.values():
        generator.generate_sequences(frame[:2000], MONTHS, seed=1)
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in frames}
    for _ in range(rounds):
        for n, frame in frames.items():
            ours = timed(partial(generator.generate_sequences, frame, MONTHS, seed=1))
            loop = timed(lambda: one_loan_loop(model, few, MONTHS)) * n / LOOP_LOANS
            found[n].append((ours, loop))
    lines += [
        "| histories x 24 | this, s | loop, s (scaled up) | ratio (lowest, highest) |",
        "|---|---|---|---|",
    ]
    medians = {}
    for n, pairs in found.items():
        ratios = sorted(loop / ours for ours, loop in pairs)
        medians[n] = statistics.median(ours for ours, _ in pairs)
        loop = statistics.median(loop for _, loop in pairs)
        lines.append(
            f"| {n:,} | {medians[n]:.3f} | {loop:.1f} | {statistics.median(ratios):.0f} "
            f"({ratios[0]:.0f}, {ratios[-1]:.0f}) |"
        )
    exponent = np.log(medians[100_000] / medians[10_000]) / np.log(10)
    records = timed(
        lambda: [None for _ in generator.stream_records(frames[100_000], MONTHS, "2024-01-31", seed=1)]
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines += [
        "",
        f"Time grows as n^{exponent:.2f}. Records of 100,000 x 24 (2.4 M rows), streamed: {records:.2f} s. "
        f"Peak memory of the process {peak:,.0f} MiB.",
    ]
    return lines


def deepecho(generator: LSTMCascadeGenerator, known: KnownHistories, rounds: int) -> list[str]:
    """PAR on the same table, sampled one sequence at a time as it does."""
    try:
        from deepecho import PARModel
    except ImportError:
        return ["deepecho is not installed: no comparison in this run (pip install deepecho)."]
    codes = known.codes[:300]
    sequences = [
        {"context": list(map(float, features)), "data": [list(map(str, row.tolist()))]}
        for features, row in zip(known.features[:300], codes, strict=True)
    ]
    par = PARModel(epochs=2, cuda=False, verbose=False)
    par.fit_sequences(sequences, ["continuous"] * known.features.shape[1], ["categorical"])
    count, ratios, rates = 20, [], []
    frame = known.borrowers.sample(10_000, with_replacement=True, seed=1)
    for _ in range(rounds):
        ours = timed(lambda: generator.generate_sequences(frame, MONTHS, seed=1)) / len(frame)
        theirs = timed(
            lambda: [par.sample_sequence(s["context"], sequence_length=MONTHS) for s in sequences[:count]]
        )
        rates.append(count * MONTHS / theirs)
        ratios.append(theirs / count / ours)
    return [
        f"deepecho PAR {statistics.median(rates):,.0f} steps/s; ratio, median of {rounds} rounds: "
        f"**{statistics.median(ratios):,.0f}** (lowest {min(ratios):,.0f})."
    ]


def training(n_histories: int) -> list[str]:
    """Seconds until nn.LSTM in float32 at batch 32 reaches a loss, and until this trainer does.

    The plain network is an LSTM on statuses, features and calendar over the first-order law, without the
    direct term; the second row is this network with nn.LSTM, so that what the layers give is seen apart.
    """
    known, held = known_histories(n_histories, MONTHS, seed=1), known_histories(4000, MONTHS, seed=2)

    def data(histories: KnownHistories) -> CascadeData:
        return training_data(
            CascadeHistories(
                codes=trim_after_end(histories.codes), features=histories.features, months=histories.months
            )
        )

    curves = {}
    for name, is_plain, is_fused, batch, lr, epochs in (
        ("plain nn.LSTM, float32, batch 32", True, False, 32, 1e-3, 3),
        ("this network, nn.LSTM, float32, batch 32", False, False, 32, 1e-3, 2),
        ("this trainer", False, True, 256, 6e-3, 2),
    ):
        torch.manual_seed(0)
        model = LSTMCascadeModel(CascadeConfig(dropout=0.05, uses_calendar=True))
        if is_plain:
            model.common.requires_grad_(False)
            model.direct.requires_grad_(False)
        config = TrainConfig(batch_size=batch, patience=99, warmup_share=0.02, final_lr_share=0.1)
        curve: list[tuple[float, float]] = []
        CascadeTrainer(model, lr=lr, config=config, is_fused=is_fused).fit(
            data(known),
            validation=data(held),
            epochs=epochs,
            on_epoch=lambda record, c=curve: c.append((record["seconds"], record["val_loss"])),  # type: ignore[misc]
        )
        curves[name] = curve
    lines = ["| trainer | seconds and validation log-loss after each epoch |", "|---|---|"]
    lines += [f"| {n} | {', '.join(f'{s:.1f} s {v:.5f}' for s, v in c)} |" for n, c in curves.items()]
    fast = curves.pop("this trainer")
    for name, curve in curves.items():
        for seconds, target in curve:
            reached = next((s for s, v in fast if v <= target), None)
            found = (
                "not reached by this trainer in the run"
                if reached is None
                else f"this trainer {reached:.1f} s, ratio **{seconds / reached:.1f}**"
            )
            lines += ["", f"Validation log-loss {target:.5f}: {name} {seconds:.1f} s; {found}."]
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--histories", type=int, default=50_000, help="of the training comparison")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    generator, known = trained()
    lines = ["# Payment cascade: speed", "", machine_line(), "", "## Sampling", ""]
    lines += sampling(generator, known, options.rounds)
    lines += ["", "## Against deepecho", "", *deepecho(generator, known, options.rounds)]
    if not options.skip_training:
        lines += ["", f"## Training on {options.histories:,} histories", "", *training(options.histories)]
    write_result(options.out, "payment_cascade", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
