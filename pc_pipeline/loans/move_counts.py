"""Moves counted in one pass over a panel as it lies, chunk by chunk, on every core.

Here: `count_in_order`, for rows that already stand in loan order (as the store keeps them); nothing is copied
or joined, however many chunks the frame has. Not here: rows in any other order (`panel_rows`), groups and the
public functions (`transitions`).
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numba
import numpy as np
import polars as pl

from pc_pipeline.core.errors import DataError
from pc_pipeline.loans.panel_rows import KEY, key_words, month_table
from pc_pipeline.schemas.states import N_STATES

_FEWEST: Final = 100_000  # rows a slice holds at least, on average
_LONGEST_MONTH: Final = 31
_NO_STATE: Final = -1
_READ: Final = (*KEY, "reporting_month", "vintage_month", "loan_state")


@numba.njit(cache=True, nogil=True)
def _count_slice(
    counts: np.ndarray,
    is_first: np.ndarray,
    loan: np.ndarray,
    scenario: np.ndarray,
    path: np.ndarray,
    day: np.ndarray,
    vintage: np.ndarray,
    state: np.ndarray,
    month_of_day: np.ndarray,
    first_day: int,
    last_month: int,
    last_state: int,
) -> tuple[bool, bool]:
    """Count the moves of one slice into `counts` (T, 7, 7).

    Args:
        month_of_day: months since the first of `counts`, by day from first_day on.
        last_month, last_state: of the row before the slice, where it is of the same loan; else state -1.

    Returns:
        Whether months rise inside every run of one key, and whether every state is in the alphabet.
    """
    rising = True
    for row in range(day.size):
        to = state[row]
        if to < 0 or to > 6:
            return rising, False
        month = month_of_day[day[row] - first_day]
        before = row - 1
        if row == 0:
            first = last_state < 0
        else:
            first = (
                loan[row, 0] != loan[before, 0]
                or loan[row, -1] != loan[before, -1]
                or path[row] != path[before]
                or scenario[row, 0] != scenario[before, 0]
                or scenario[row, -1] != scenario[before, -1]
            )
        is_first[row] = first
        if first:
            place = vintage[row] - first_day
            if 0 <= place < month_of_day.size and month == month_of_day[place] + 1:
                counts[month, 0, to] += 1
        elif month <= last_month:
            rising = False
        elif month == last_month + 1 and last_state < 4:
            counts[month, last_state, to] += 1
        last_month, last_state = month, to
    return rising, True


def _edges(frame: pl.DataFrame) -> list[int]:
    """Where slices begin and end: wherever a column has a chunk border and, within long chunks, evenly."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    longest = max(_FEWEST, -(-frame.height // cores))
    borders = {0}
    for name in _READ:
        borders |= set(itertools.accumulate(frame[name].chunk_lengths()))
    edges = [0]
    for low, high in itertools.pairwise(sorted(borders)):
        parts = max(1, -(-(high - low) // longest))
        edges += [low + (high - low) * part // parts for part in range(1, parts + 1)]
    return edges


def count_in_order(frame: pl.DataFrame) -> tuple[np.ndarray, int] | None:
    """Counts (T, 7, 7) and the month index of the first T; None where rows are not in loan order.

    Args:
        frame: the key, reporting_month, vintage_month and loan_state, no null in key, month and state.

    Raises:
        DataError: a state outside 0-6.
    """

    edges = _edges(frame)
    if len(edges) * _FEWEST > 10 * max(frame.height, _FEWEST):
        frame = frame.rechunk()
        edges = _edges(frame)
    day = frame["reporting_month"].to_physical()
    lowest, highest = int(str(day.min())), int(str(day.max()))
    first_day, month_of_day = month_table(lowest - _LONGEST_MONTH, highest)
    start = int(month_of_day[lowest - first_day])
    place_of_day = month_of_day - start
    n_months = int(place_of_day[-1]) + 1
    slices = [frame.slice(low, high - low) for low, high in itertools.pairwise(edges)]
    keys = [[tuple(part[name][place] for name in KEY) for place in (0, -1)] for part in slices]

    def count(number: int) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        part, last_month, last_state = slices[number], 0, _NO_STATE
        if number and keys[number - 1][1] == keys[number][0]:
            before = slices[number - 1]
            last_month = int(place_of_day[before["reporting_month"][-1:].to_physical()[0] - first_day])
            last_state = int(before["loan_state"][-1])
        counts = np.zeros((n_months, N_STATES, N_STATES), dtype=np.int64)
        is_first = np.empty(part.height, dtype=bool)
        vintage = part["vintage_month"].to_physical()
        arguments: list[Any] = [
            counts,
            is_first,
            key_words(part["loan_id"]),
            key_words(part["scenario"]),
            part["macro_path_id"].cast(pl.Int64).to_numpy(),
            part["reporting_month"].to_physical().to_numpy(),
            (vintage.fill_null(first_day - 1) if vintage.null_count() else vintage).to_numpy(),
            part["loan_state"].cast(pl.Int64).to_numpy(),
            place_of_day,
            first_day,
            last_month,
            last_state,
        ]
        rising, known = _count_slice(*arguments)
        return counts, is_first, rising, known

    with ThreadPoolExecutor(max_workers=min(len(slices), os.cpu_count() or 1)) as pool:
        found = list(pool.map(count, range(len(slices))))
    if not all(known for *_, known in found):
        states = frame["loan_state"]
        raise DataError("state outside the alphabet", expected="0..6", got=(states.min(), states.max()))
    heads = [pl.Series(is_first) for _, is_first, _, _ in found]
    loans = pl.concat(
        [part["loan_id"].filter(head) for part, head in zip(slices, heads, strict=True)], rechunk=False
    )
    is_one_run = loans.n_unique() == loans.len()
    if not is_one_run:  # a loan lives on several paths
        firsts = [part.select(KEY).filter(head) for part, head in zip(slices, heads, strict=True)]
        lives = pl.concat(firsts, rechunk=False)
        is_one_run = lives.n_unique() == lives.height
    if not is_one_run or not all(rising for *_, rising, _ in found):
        return None
    return np.sum([counts for counts, *_ in found], axis=0), start
