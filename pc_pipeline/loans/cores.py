"""Compiled kernels over slices of loans, one slice a core.

Here: `on_all_cores`. What a slice computes depends on its loans only, so the number of cores changes no
value. Not here: the kernels, which must release the interpreter (`nogil`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_FEWEST: Final = 2_000  # loans a slice holds at least: below, a thread costs more than it saves


def on_all_cores(work: Callable[[slice], object], n_loans: int) -> None:
    """Call `work` on consecutive slices of 0..n_loans that together cover it; the first error is raised."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_slices = max(1, min(cores, n_loans // _FEWEST))
    edges = [n_loans * part // n_slices for part in range(n_slices + 1)]
    slices = [slice(low, high) for low, high in itertools.pairwise(edges)]
    if n_loans == 0:
        return
    if n_slices == 1:
        work(slices[0])
        return
    with ThreadPoolExecutor(max_workers=n_slices) as pool:
        for done in [pool.submit(work, part) for part in slices]:
            done.result()
