"""Generated loan histories against real ones: can they be told apart, and in what do they differ?

Here: `measure`. The loan network learns from the loans that the chain learns from; histories of the loans
held out by the hash of their id are then drawn from where each of them began, along the same months, and cut
where the real record was cut. Not here: the classifier (`evaluation.sequence_tests`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from pc_pipeline.core.rng import derive_seed
from pc_pipeline.engines.fidelity.auto_record import observed_macro, real_networks
from pc_pipeline.engines.fidelity.table import Request, figure, figures
from pc_pipeline.engines.stages.learning import Models
from pc_pipeline.engines.stages.scoring import is_held_out, learning_rows
from pc_pipeline.evaluation.sequence_tests import two_sample_auc
from pc_pipeline.loans.ingest.read import read_tape
from pc_pipeline.loans.trajectories import Trajectories, prepare_trajectories
from pc_pipeline.models.transition_transformer import with_absorbing_rows
from pc_pipeline.schemas.states import N_LIVING, LoanState
from pc_pipeline.training.trajectory_data import TrajectoryData, rows_for, trajectory_data

SECTION: Final = "generated histories"
DATA: Final = ("sec_auto_aart2017", "macro_fred")
SAMPLES: Final = 4
GOAL_AUC: Final = 0.55
WITHIN_SE: Final = 2.0
PADDING: Final = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Histories:
    """N histories of at most T months.

    Attributes:
        before: (N,) state before column 0. states: (N,T), -1 after the end. ratios: (N,T) payments over
            instalment. severities: (N,) loss given default, NaN without one. loan: (N,) loan number.
    """

    before: np.ndarray
    states: np.ndarray
    ratios: np.ndarray
    severities: np.ndarray
    loan: np.ndarray


def measure(request: Request) -> pl.DataFrame:
    """Rows of the section; one note where the data are missing."""
    folder = request.data / DATA[0]
    if not folder.is_dir():
        return figures([figure(SECTION, "two-sample AUC", float("nan"), note="data set missing")])
    delivered = read_tape(folder)
    macro = observed_macro(request.data / DATA[1], delivered.panel)
    loans, panel, recipe = delivered.loans, delivered.panel, request.recipe
    models = real_networks(recipe, panel, loans, macro, request.device)
    learned = prepare_trajectories(learning_rows(panel), loans, macro)
    held = panel.filter(pl.col("loan_id").map_elements(is_held_out, return_dtype=pl.Boolean))
    judged = prepare_trajectories(held, loans, macro, scaler=learned.scaler)
    real, drawn = real_and_drawn(judged, models, recipe.seed)
    rows = [
        _apart("states", real, drawn, recipe.seed, with_payments=False),
        _apart("states and payments", real, drawn, recipe.seed, with_payments=True),
    ]
    return figures([*rows, *(_gap(name, real, drawn) for name in _FAMILIES)])


def _apart(label: str, real: Histories, drawn: Histories, seed: int, with_payments: bool) -> dict[str, Any]:
    """Two-sample AUC of real histories against those drawn of them, mean of the samples.

    The interval is that of one sample: the real histories are the same in all.
    """
    count = len(real.states)
    theirs, ours = payment_facts(real), payment_facts(drawn)
    found = []
    for first in range(0, len(drawn.states), count):
        sample = slice(first, first + count)
        known, made = (theirs, ours[sample]) if with_payments else (None, None)
        found.append(two_sample_auc(real.states, drawn.states[sample], known, made, GOAL_AUC, seed))
    value, low, high = (float(np.mean([row[place] for row in found])) for place in (1, 2, 3))
    name, goal, note = found[0][0], found[0][4], f"{found[0][6]}, mean of {len(found)} draws"
    return figure(
        SECTION,
        f"{name}, {label}",
        value,
        low=low,
        high=high,
        goal=goal,
        passed=value <= GOAL_AUC,
        note=note,
    )


def payment_facts(histories: Histories) -> np.ndarray:
    """(N,5) mean and sd of the payment ratio, shares of months unpaid, exact and doubled.

    In double precision on both sides: the sd of a payment that never changes is 0 there, and 3e-4 in single.
    """
    living = (histories.states >= 0) & (histories.states < N_LIVING)
    ratio = np.where(living, np.clip(histories.ratios.astype(np.float64), 0.0, 3.0), 0.0)
    months = np.maximum(living.sum(axis=1), 1)
    mean = ratio.sum(axis=1) / months
    spread = np.sqrt(np.maximum((ratio**2).sum(axis=1) / months - mean**2, 0.0))
    shares = [
        (living & event).sum(axis=1) / months
        for event in (ratio < 0.01, np.abs(ratio - 1.0) < 0.01, ratio > 1.5)
    ]
    return np.column_stack([mean, spread, *shares])


def real_and_drawn(judged: Trajectories, models: Models, seed: int) -> tuple[Histories, Histories]:
    """Real histories, and `SAMPLES` drawn of each under the same censoring."""
    cohort, network = models["transition_transformer"][0], models["loan_trajectory"][0]
    data = trajectory_data(judged, rows_for(judged, cohort, None))
    last = int((judged.start_month + judged.lengths).max())
    absorbed = judged.states[np.arange(len(judged)), judged.lengths - 1] >= N_LIVING
    window = np.where(absorbed, last - judged.start_month, judged.lengths)
    window = np.minimum(window, judged.n_months)
    with torch.inference_mode():
        out = network.generate(
            data.features,
            with_absorbing_rows(_own_rows(data)),
            n_samples=SAMPLES,
            initial_state=data.initial_state,
            months_since_miss=data.since0,
            calendar=data.calendar.long(),
            seed=derive_seed(seed, "histories"),
        )
    states = out["states"].flatten(0, 1).numpy()
    ended = (states >= N_LIVING).cumsum(axis=1) - (states >= N_LIVING) > 0
    cut = ended | (np.arange(states.shape[1]) >= np.tile(window, SAMPLES)[:, None])
    states = np.where(cut, PADDING, states)
    severity = out["severities"].flatten(0, 1).numpy()
    is_default = states == LoanState.default  # one month each: what follows is cut
    defaulted = is_default.any(axis=1)
    drawn = Histories(
        before=np.tile(judged.initial_state, SAMPLES),
        states=states,
        ratios=out["payment_ratios"].flatten(0, 1).numpy(),
        severities=np.where(defaulted, (severity * is_default).sum(axis=1), np.nan),
        loan=np.tile(judged.loan_row, SAMPLES),
    )
    real = Histories(
        before=judged.initial_state.astype(np.int64),
        states=data.states.numpy(),
        ratios=judged.payment_ratio.astype(np.float64),
        severities=1.0 - judged.recovery_rate,
        loan=judged.loan_row,
    )
    return real, drawn


def _own_rows(data: TrajectoryData) -> torch.Tensor:
    """(N,T,4,7) cohort rows of each history on its own clock."""
    months = torch.arange(data.states.shape[1])
    column = (data.first_column[:, None] + months).clamp(max=data.rows.shape[1] - 1)
    return data.rows[data.rows_of[:, None], column]


def _moves(histories: Histories, origin: int, targets: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) moves from a state into some states, and all moves from it."""
    before = np.column_stack([histories.before, histories.states[:, :-1]])
    here = (before == origin) & (histories.states != PADDING)
    return (here & np.isin(histories.states, targets)).sum(axis=1), here.sum(axis=1)


def _run_length(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """(N,) delinquent months, and spells of them."""
    late = (histories.states >= LoanState.dpd30) & (histories.states < N_LIVING)
    before = np.column_stack([(histories.before >= 1) & (histories.before < N_LIVING), late[:, :-1]])
    return late.sum(axis=1), (late & ~before).sum(axis=1)


def _timing(histories: Histories, state: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) month in which a state was entered, and whether it was."""
    entered = histories.states == state
    return np.where(entered.any(axis=1), entered.argmax(axis=1), 0), entered.any(axis=1).astype(int)


def _share(histories: Histories, state: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) months in a state, and all months."""
    return (histories.states == state).sum(axis=1), (histories.states != PADDING).sum(axis=1)


def _ratio(histories: Histories, state: int, power: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(N,) sum of payment ratios in a state, at most three instalments each, and its months."""
    here = histories.states == state
    return (np.clip(histories.ratios, 0.0, 3.0) ** power * here).sum(axis=1), here.sum(axis=1)


def _persistence(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """(N,) repeats of 'paid more than 1.5 instalments' a month later, and the months that could repeat it."""
    living = (histories.states >= 0) & (histories.states < N_LIVING)
    double = (histories.ratios > 1.5) & living
    return (double[:, 1:] & double[:, :-1]).sum(axis=1), (double[:, :-1] & living[:, 1:]).sum(axis=1)


_FAMILIES: Final[dict[str, Any]] = {
    "misses of performing months": lambda h: _moves(h, 0, (1, 2, 3, 4)),
    "cure rate of 30dpd": lambda h: _moves(h, 1, (0,)),
    "cure rate of 60dpd": lambda h: _moves(h, 2, (0, 1)),
    "cure rate of 90dpd": lambda h: _moves(h, 3, (0, 1, 2)),
    "length of a delinquent spell, months": _run_length,
    "share of months at 90dpd": lambda h: _share(h, 3),
    "share of loans that default": lambda h: (_timing(h, 4)[1], np.ones(len(h.states))),
    "month of default": lambda h: _timing(h, 4),
    "month of prepayment": lambda h: _timing(h, 5),
    "prepayment rate": lambda h: _moves(h, 0, (5,)),
    "payment ratio, performing": lambda h: _ratio(h, 0),
    "payment ratio squared, performing": lambda h: _ratio(h, 0, 2),
    "payment ratio, 30dpd": lambda h: _ratio(h, 1),
    "repeats of a double payment": _persistence,
    "loss given default": lambda h: (np.nan_to_num(h.severities), np.isfinite(h.severities).astype(int)),
}


def _gap(name: str, real: Histories, drawn: Histories) -> dict[str, Any]:
    """Difference drawn - real of a ratio, in standard errors of the real one clustered by loan."""
    ours, theirs = _rate(_FAMILIES[name](drawn), drawn.loan), _rate(_FAMILIES[name](real), real.loan)
    spread = float(np.hypot(ours[1], theirs[1]))
    value = (ours[0] - theirs[0]) / spread if spread > 0 else float("nan")
    return figure(
        SECTION,
        f"{name}: drawn less real, in standard errors",
        value,
        goal=f"within {WITHIN_SE:g}",
        passed=bool(abs(value) <= WITHIN_SE) if np.isfinite(value) else None,
        note=f"real {theirs[0]:.4f}, drawn {ours[0]:.4f}, standard error {spread:.4f}",
    )


def _rate(parts: tuple[np.ndarray, np.ndarray], loan: np.ndarray) -> tuple[float, float]:
    """Sum over sum, and its standard error by loan (delta method)."""
    above, below = np.asarray(parts[0], dtype=float), np.asarray(parts[1], dtype=float)
    total = below.sum()
    if total <= 0:
        return float("nan"), float("nan")
    rate = above.sum() / total
    _, place = np.unique(loan, return_inverse=True)
    residual = np.bincount(place, weights=above - rate * below)
    return float(rate), float(np.sqrt((residual**2).sum()) / total)
