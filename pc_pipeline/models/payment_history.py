"""What a loan's payments say, as causal inputs: the last twelve payment ratios and what follows from them.

Here: the window of ratios, the facts read from it, their fixed expansion for networks. Not here: the states
(`history`), the network (`loan_trajectory`).

A window (..., 12) holds payment over instalment of the last twelve months, newest last, NaN where nothing is
known. It is all the memory there is, so that a simulated month only shifts it: training, scoring and
simulation read the same facts. The expansion has fixed knots (a ratio means the same in every deal) and
learns no constants.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

WINDOW: Final = 12
MAX_RATIO: Final = 3.0
MISSED_BELOW: Final = 0.5  # of the instalment
_RATIO_KNOTS: Final = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0, 1.05, 1.25, 1.5, 1.95, 2.05, 3.0)
_SHARE_KNOTS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_ARREARS_KNOTS: Final = (0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0)
_AHEAD_KNOTS: Final = (-6.0, -3.0, -2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 6.0)
_COUNT_KNOTS: Final = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
_KNOTS: Final = {
    "ratio_1": _RATIO_KNOTS,
    "ratio_2": _RATIO_KNOTS,
    "ratio_3": _RATIO_KNOTS,
    "met_3": _SHARE_KNOTS,
    "met_12": _SHARE_KNOTS,
    "largest_3": _RATIO_KNOTS,
    "arrears": _ARREARS_KNOTS,
    "ahead_3": _AHEAD_KNOTS,
    "ahead_12": _AHEAD_KNOTS,
    "since_missed": _COUNT_KNOTS,
    "missed_12": _COUNT_KNOTS,
    "doubled_12": _COUNT_KNOTS,
    "exact_12": _COUNT_KNOTS,
}
PAYMENT_FACTS: Final = tuple(_KNOTS)
N_PAYMENT_INPUTS: Final = sum(len(knots) for knots in _KNOTS.values()) + 1


def payment_windows(ratio_NT: np.ndarray, before_NW: np.ndarray | None = None) -> np.ndarray:
    """(N,T,12) windows known at the end of the month before each column.

    Args:
        ratio_NT: payment over instalment, NaN where unknown.
        before_NW: (N,12) ratios of the months before column 0, newest last; None: unknown.
    """
    count, months = ratio_NT.shape
    before = np.full((count, WINDOW), np.nan) if before_NW is None else before_NW
    line = np.concatenate([before, np.clip(ratio_NT, 0.0, MAX_RATIO)], axis=1).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(line, WINDOW, axis=1)[:, :months]


def shift_window(window: Tensor, ratio: Tensor) -> Tensor:
    """(B,12) window a month later, with this month's ratio (B,)."""
    return torch.cat([window[:, 1:], ratio.clamp(0.0, MAX_RATIO)[:, None].to(window.dtype)], dim=1)


def payment_facts(window: Tensor) -> Tensor:
    """(...,12) window -> (...,13) facts of `PAYMENT_FACTS`; NaN where the window is empty.

    Ratios of the last three months; share of each instalment met (at most 1), mean of 3 and of 12 months; the
    largest of 3 months; instalments owed (shortfalls add, excess pays back, never below 0); paid ahead of
    schedule over 3 and 12 months, in instalments; months since one was missed (12: none); months missed,
    doubled, and paid to the instalment, of 12.
    """
    known = ~torch.isnan(window)
    ratio = torch.where(known, window, torch.ones_like(window))
    weight = known.to(window.dtype)
    met, ahead = ratio.clamp(max=1.0) * weight, (ratio - 1.0) * weight
    seen_3, seen_12 = weight[..., -3:].sum(-1).clamp(min=1.0), weight.sum(-1).clamp(min=1.0)
    owed = torch.zeros_like(ratio[..., 0])
    since = torch.full_like(owed, float(WINDOW))
    for month in range(WINDOW):
        owed = (owed - ahead[..., month]).clamp(min=0.0)
        missed = known[..., month] & (ratio[..., month] < MISSED_BELOW)
        since = torch.where(missed, torch.zeros_like(since), (since + 1.0).clamp(max=float(WINDOW)))

    def count(event: Tensor) -> Tensor:
        return (event & known).to(window.dtype).sum(-1)

    facts = torch.stack(
        [
            ratio[..., -1],
            ratio[..., -2],
            ratio[..., -3],
            met[..., -3:].sum(-1) / seen_3,
            met.sum(-1) / seen_12,
            torch.where(known, window, torch.zeros_like(window))[..., -3:].amax(-1),
            owed,
            ahead[..., -3:].sum(-1),
            ahead.sum(-1),
            since,
            count(ratio < MISSED_BELOW),
            count(ratio > 1.5),
            count((ratio - 1.0).abs() < 0.01),
        ],
        dim=-1,
    )
    return torch.where(known.any(-1, keepdim=True), facts, torch.full_like(facts, torch.nan))


def payment_inputs(window: Tensor) -> Tensor:
    """(...,12) window -> (...,N_PAYMENT_INPUTS) weights of fixed knots, and whether anything is known.

    Each fact becomes a hat basis (linear between knots), so a linear map of it is piecewise linear. An empty
    window is all zeros.
    """
    facts = payment_facts(window)
    known = ~torch.isnan(facts[..., :1])
    parts = [
        hats(torch.nan_to_num(facts[..., number]), knots) for number, knots in enumerate(_KNOTS.values())
    ]
    basis = torch.cat([*parts, torch.ones_like(facts[..., :1])], dim=-1)
    return torch.where(known, basis, torch.zeros_like(basis))


def hats(x: Tensor, knots: tuple[float, ...]) -> Tensor:
    """(...,) -> (...,K) weights of the two knots beside x; they sum to 1."""
    at = torch.tensor(knots, dtype=x.dtype, device=x.device)
    x = x.clamp(knots[0], knots[-1])[..., None]
    gap = at[1:] - at[:-1]
    rising = ((x - at[:-1]) / gap).clamp(0.0, 1.0)
    one = torch.ones_like(x)
    return torch.cat([one, rising], dim=-1) - torch.cat([rising, torch.zeros_like(x)], dim=-1)
