"""Loans' own luck along a path, added up as the kernel draws: a sum of terms that each have mean zero.

Here: what the kernel calls each month (compiled), and the arrays it needs. Not here: what a loan is worth in
each state (`simulation.own_luck`), the draws (`simulation.kernel`), what the sum is used for
(`simulation.estimators`).

Let U(t, k) be any number that is known when the macro path is: what a loan will lose if it stands in state k
after month t. A month in which it moves from k to j by probabilities p adds

    x_j - sum_i p_i x_i,   x_j = U(t, j) for living j, balance x severity for default, 0 for an end      (1)

(severity as drawn, its mean under the sum), and the sum M over loans and months has mean zero given the macro
path, whatever U is (Henderson and Glynn 2002). The closer U to the truth, the closer M to L - E[L | macro].
The squares of (1) are added up too: M^2 less their sum has mean zero as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pc_pipeline.simulation.lanes import LANES
from pc_pipeline.simulation.vectors import luck_lanes, read, write

N_WORTH = 5  # four living states, and default out of performing


class Luck(NamedTuple):
    """What (1) needs; B blocks, T months, P paths of a batch, C cohorts.

    Attributes:
        worth_BTJL: float32 (B, T, 5, 64) U of states 0-3 after each month, and what a performing loan that
            defaults in it loses on average, currency.
        factor_PCTK: float32 (P, C, T + 1, 4) by which a path's U before each month differ from that.
        severity_G: mean loss given default by loss group.
        expected_GL: float32 scratch. out_PX: float64 (P, 2) sums of (1) and of its squares.
    """

    worth_BTJL: np.ndarray
    factor_PCTK: np.ndarray
    severity_G: np.ndarray
    expected_GL: np.ndarray
    out_PX: np.ndarray


@njit(inline="always")
def add_luck(luck: Any, p: Any, term: Any, square: Any) -> None:
    """Add to a path's sums."""
    write(luck.out_PX, 2 * p, read(luck.out_PX, 2 * p) + term)
    write(luck.out_PX, 2 * p + 1, read(luck.out_PX, 2 * p + 1) + square)


@njit(inline="always")
def worth_at(luck: Any, b: Any, t: Any, state: Any, i: Any) -> Any:
    """U before the path's factor; state 4: loss of a performing loan."""
    return read(luck.worth_BTJL, ((b * luck.worth_BTJL.shape[1] + t) * N_WORTH + state) * LANES + i)


@njit(inline="always")
def factor_at(luck: Any, p: Any, cohort: Any, t: Any) -> Any:
    """Offset of the four factors of a path and cohort after a month."""
    return ((p * luck.factor_PCTK.shape[1] + cohort) * luck.factor_PCTK.shape[2] + t + 1) * 4


@njit(inline="always")
def performing_luck(
    luck: Any, work: Any, rows: Any, row: Any, b: Any, cohort: Any, g: Any, p: Any, t: Any
) -> None:
    """Terms of all performing lanes as if they stayed; those that do not are put right by `left_luck`."""
    at = (b * luck.worth_BTJL.shape[1] + t) * N_WORTH * LANES
    term, square = luck_lanes(
        work.alive_G[g] & ~work.late_G[g],
        work.weight_GJL,
        g * 6 * LANES,
        rows,
        row,
        luck.worth_BTJL,
        at,
        luck.factor_PCTK,
        factor_at(luck, p, cohort, t),
        luck.expected_GL,
        g * LANES,
    )
    add_luck(luck, p, term, square)


@njit(inline="always")
def moved_worth(luck: Any, b: Any, t: Any, level: Any, i: Any, new: Any, lost: Any) -> Any:
    """x of eq. (1) for the state moved to."""
    worth = np.float64(0.0)
    if new < 4:
        worth = np.float64(worth_at(luck, b, t, new, i)) * read(luck.factor_PCTK, level + new)
    elif new == 4:
        worth = lost
    return worth


@njit(inline="always")
def left_luck(luck: Any, b: Any, g: Any, i: Any, cohort: Any, p: Any, t: Any, new: Any, lost: Any) -> None:
    """A performing lane moved to `new`: its own term instead of that of staying."""
    level = factor_at(luck, p, cohort, t)
    expected = np.float64(read(luck.expected_GL, g * LANES + i))
    stays = moved_worth(luck, b, t, level, i, 0, 0.0) - expected
    moves = moved_worth(luck, b, t, level, i, new, lost) - expected
    add_luck(luck, p, moves - stays, moves * moves - stays * stays)


@njit(inline="always")
def late_expectation(
    luck: Any,
    rows: Any,
    row: Any,
    own_BLHJ: Any,
    own: Any,
    b: Any,
    cohort: Any,
    p: Any,
    t: Any,
    i: Any,
    charged: Any,
    use_residual: Any,
) -> Any:
    """Expected worth of a late lane's move; `charged`: mean loss if it defaults."""
    level = factor_at(luck, p, cohort, t)
    whole, expected = 0.0, 0.0
    for j in range(6):
        w = np.float64(read(rows, row + j))
        if use_residual:
            w *= read(own_BLHJ, own + j)
        whole += w
        if j < 4:
            expected += w * worth_at(luck, b, t, j, i) * read(luck.factor_PCTK, level + j)
        elif j == 4:
            expected += w * charged
    return expected / whole


@njit(inline="always")
def late_luck(
    luck: Any, b: Any, i: Any, cohort: Any, p: Any, t: Any, new: Any, lost: Any, expected: Any
) -> None:
    """A late lane moved to `new`."""
    term = moved_worth(luck, b, t, factor_at(luck, p, cohort, t), i, new, lost) - expected
    add_luck(luck, p, term, term * term)
