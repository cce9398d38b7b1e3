"""Quality of the payment cascade: known law, real cards, real auto loans. One command, a dated table.

    python benchmarks/payment_cascade_quality.py [--data ../shared/data] [--only law|cards|auto] [--epochs N]

1. Law: histories whose law is known; share of the log-loss gap between a first-order chain and the truth that
   the network closes; how often a miss follows a miss, generated against true.
2. Cards and auto loans: log-loss on borrowers held out (30 %) against Markov chains of order 1 to 3, logistic
   and LightGBM; then generated histories against the held-out ones (two-sample AUC and the whole validation).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import polars as pl

from benchmarks.machine import machine_line, write_result
from pc_pipeline.engines.cascade_data import CascadeHistories, histories_of_trajectories
from pc_pipeline.engines.payment_cascade import LSTMCascadeGenerator, training_data
from pc_pipeline.engines.stages.cascade import validate_generator
from pc_pipeline.evaluation.metrics import gap_closed, log_losses
from pc_pipeline.evaluation.sequence_models import MODELS, HistoryRows, challenger_rows, log_loss_table
from pc_pipeline.evaluation.sequence_rates import memory_rates
from pc_pipeline.loans.ingest import read_tape
from pc_pipeline.loans.payment_status import DAYS_30, DAYS_90, GRACE, ON_TIME, trim_after_end
from pc_pipeline.loans.status_breaks import find_breaks, learnable
from pc_pipeline.loans.status_law import KnownHistories, known_histories, risk_index
from pc_pipeline.loans.trajectories import prepare_trajectories
from pc_pipeline.training.payment_cascade import predicted_rows

SEEDS = (0, 1, 2)


def _histories(known: KnownHistories) -> CascadeHistories:
    return CascadeHistories(codes=trim_after_end(known.codes), features=known.features, months=known.months)


def law(epochs: int | None) -> list[str]:
    """The known law: gap closed and miss dependence."""
    training, test = known_histories(50_000, seed=1), known_histories(20_000, seed=2)
    histories, judged = _histories(training), _histories(test)
    generator = LSTMCascadeGenerator(
        learning_rate=0.004, batch_size=512, dropout=0.05, epochs=epochs or 12
    ).fit_histories(histories)
    data = training_data(judged)
    rows = HistoryRows(judged.codes, judged.features, judged.months)
    at = (rows.history, rows.month)
    p = predicted_rows(generator.model, data)[at].astype(float)
    p /= p.sum(axis=1, keepdims=True)
    truth = test.truth[at].astype(float)
    truth /= truth.sum(axis=1, keepdims=True)
    answers = {
        "first-order Markov": challenger_rows(
            "Markov 1", HistoryRows(histories.codes, histories.features), rows
        )
    }
    answers |= {"payment cascade": p, "oracle": truth}
    losses = {name: log_losses(answer, rows.happened) for name, answer in answers.items()}
    closed = gap_closed(
        *(losses[n] for n in ("payment cascade", "first-order Markov", "oracle")), rows.history
    )
    lines = ["## Known law", "", "50,000 histories of 24 months learned from, 20,000 fresh ones judged.", ""]
    lines += _markdown(log_loss_table(answers, rows, "oracle"))
    lines += [
        "",
        f"Share of the gap closed: **{closed.value:.3f} +- {1.96 * closed.se:.3f}** (goal >= 0.95).",
        "",
    ]
    made = trim_after_end(generator.resample(judged, seed=7))
    lines += [
        "Miss after an up-to-date month, by what happened k months ago (a first-order chain has ratio 1):",
        "",
    ]
    lines += ["| k | ratio, true | ratio, generated | error (2 se) |", "|---|---|---|---|"]
    true_rates, made_rates = memory_rates(judged.codes), memory_rates(made)
    a, b = true_rates.values(), made_rates.values()
    ea, eb = true_rates.errors() / a, made_rates.errors() / b
    for lag in range(2, 7):
        k = 2 * (lag - 2)
        ratio_a, ratio_b = a[k] / a[k + 1], b[k] / b[k + 1]
        error = 2 * ratio_b * np.sqrt(ea[k] ** 2 + ea[k + 1] ** 2 + eb[k] ** 2 + eb[k + 1] ** 2)
        lines.append(f"| {lag} | {ratio_a:.2f} | {ratio_b:.2f} | {error:.2f} |")
    odds = {"true": miss_odds(test, judged.codes), "generated": miss_odds(test, made)}
    found = ", ".join(
        f"{name} {value:.2f} ({value * np.exp(-1.96 * se):.2f} to {value * np.exp(1.96 * se):.2f})"
        for name, (value, se) in odds.items()
    )
    lines += [
        "",
        f"Odds of a miss one month after a late month over never late, equal borrowers, law 3: {found}.",
    ]
    return lines


def miss_odds(known: KnownHistories, codes: np.ndarray) -> tuple[float, float]:
    """Odds of 30 days one month after a late month over those of one never late, and the error of their log.

    Borrowers differ, so the ratio is taken within 100 classes of risk, season and status before (Mantel and
    Haenszel; error of Robins, Breslow and Greenland). The law's own constant is 3.
    """
    late = (codes >= DAYS_30) & (codes <= DAYS_90)
    ever = np.cumsum(late, axis=1) > 0
    fresh = (codes[:, 1:-1] >= ON_TIME) & (codes[:, 1:-1] <= GRACE) & (codes[:, 2:] >= 0)
    after, never = fresh & late[:, :-2], fresh & ~ever[:, 1:-1]
    risk = risk_index(known.features)
    level = np.searchsorted(np.quantile(risk, np.linspace(0, 1, 101)[1:-1]), risk)
    month = (known.months[:, None] + np.arange(2, codes.shape[1])) % 12
    stratum = (level[:, None] * 12 + month) * 2 + codes[:, 1:-1]
    cells = [
        np.bincount(stratum[chosen & (missed == (codes[:, 2:] == DAYS_30))], minlength=2400).astype(float)
        for chosen in (after, never)
        for missed in (True, False)
    ]
    a, b, c, d = cells
    n = np.maximum(a + b + c + d, 1.0)
    r, s, p, q = a * d / n, b * c / n, (a + d) / n, (b + c) / n
    variance = (p * r).sum() / (2 * r.sum() ** 2) + (q * s).sum() / (2 * s.sum() ** 2)
    variance += (p * s + q * r).sum() / (2 * r.sum() * s.sum())
    return float(r.sum() / s.sum()), float(np.sqrt(variance))


def _held_out(ids: pl.Series) -> np.ndarray:
    """(N,) bool, three in ten by the hash of the id."""
    draws = [int.from_bytes(hashlib.sha256(str(i).encode()).digest()[:8], "big") / 2**64 for i in ids]
    return np.array(draws) < 0.30


def _one_side(judged: CascadeHistories, mask: np.ndarray) -> CascadeHistories:
    """Histories cut to the side of a break that was learned; mask (N, T)."""
    keep = np.flatnonzero(mask.any(axis=1))
    codes = np.where(mask, judged.codes, -1)[keep]
    columns = int((codes >= 0).any(axis=0).sum())
    clean = judged.take(keep)
    return replace(
        clean,
        codes=np.ascontiguousarray(codes[:, :columns]),
        is_final=None if clean.is_final is None else clean.is_final[:, :columns],
        last_column=None if clean.last_column is None else np.minimum(clean.last_column, columns),
    )


def real(name: str, path: Path, epochs: int | None) -> list[str]:
    """One real tape."""
    tape = read_tape(path)
    trajectories = prepare_trajectories(tape.panel, tape.loans)
    histories = histories_of_trajectories(trajectories, tape.loans, tape.panel, hide_seed=None)
    held = _held_out(trajectories.keys["loan_id"])
    learned, judged = histories.take(np.flatnonzero(~held)), histories.take(np.flatnonzero(held))
    breaks = find_breaks(histories.codes, histories.months)
    mask = learnable(histories.codes, histories.months, breaks)
    lines = [
        f"## {name}",
        "",
        f"{len(learned):,} histories learned from, {len(judged):,} held-out ones judged.",
    ]
    lines += [f"Detected: {found}." for found in breaks]
    if breaks:
        beyond = int((~mask & (histories.codes >= 0)).sum())
        lines.append(f"The {beyond:,} reports beyond it: neither learned nor judged.")
    training_rows = HistoryRows(learned.codes, learned.features, learned.months, mask[~held])
    rows = HistoryRows(judged.codes, judged.features, judged.months, mask[held])
    ours = np.zeros((len(rows), 8))
    for seed in SEEDS:
        generator = LSTMCascadeGenerator(
            hidden_dim=64,
            num_layers=1,
            learning_rate=0.003,
            batch_size=256,
            dropout=0.3,
            epochs=epochs or 15,
            random_seed=seed,
        ).fit_histories(learned)
        p = predicted_rows(generator.model, training_data(judged))[rows.history, rows.month].astype(float)
        ours += p / p.sum(axis=1, keepdims=True) / len(SEEDS)
        if seed == SEEDS[0]:
            first, single = generator, p / p.sum(axis=1, keepdims=True)
    answers = {model: challenger_rows(model, training_rows, rows) for model in MODELS}
    answers |= {"payment cascade": single, f"payment cascade, mean of {len(SEEDS)}": ours}
    lines += ["", *_markdown(log_loss_table(answers, rows, "LightGBM")), ""]
    clean = _one_side(judged, mask[held]) if breaks else judged
    validation = validate_generator(first, clean, most=5000)
    lines += ["Generated against held-out histories:", "", *_markdown(validation.table)]
    return lines


def _markdown(frame: pl.DataFrame) -> list[str]:
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * frame.width]
    for row in frame.rows():
        lines.append("| " + " | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row) + " |")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--only", choices=("law", "cards", "auto"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    lines = ["# Payment cascade: quality", "", machine_line(), ""]
    if options.only in (None, "law"):
        lines += [*law(options.epochs), ""]
    for name, folder in (("cards", "uci_credit_card"), ("auto", "sec_auto_aart2017")):
        if options.only in (None, name):
            path = options.data / folder
            missing = [f"## {name}", "", f"Data set missing: {folder}."]
            lines += [*(real(name, path, options.epochs) if path.exists() else missing), ""]
    suffix = f"_{options.only}" if options.only else ""
    write_result(options.out, f"payment_cascade_quality{suffix}", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
