"""What the direct term of the payment cascade sees of a history: how often, how long ago, how late.

Here: `history_inputs`, the inputs of whole histories for training, and `observe`, the compiled step that
keeps the same inputs up to date while sampling. Not here: the network (`payment_cascade`), the draw
(`cascade_kernels`).
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np
import torch
from torch import Tensor

from pc_pipeline.schemas.states import PAYMENT_STATUSES

LAGS: Final = 12
N_HISTORY: Final = LAGS + 7
_DAYS_30, _DAYS_60, _DAYS_90 = (PAYMENT_STATUSES.index(name) for name in ("30_days", "60_days", "90_days"))
_GRACE: Final = PAYMENT_STATUSES.index("grace_period")
_F = np.float32
_FADE = _F(0.7788)  # e ** (-1/4) a month
_MOST: Final = 1023
_LOG = np.log1p(np.arange(_MOST + 1)).astype(np.float32)
# Columns after the lags.
_RECENT, _SHARE, _COUNT, _LATER, _AGE, _RUN, _SOFT = range(LAGS, N_HISTORY)
_MISSES, _MONTHS, _RUN_LENGTH = range(N_HISTORY, N_HISTORY + 3)  # counts behind them
N_STATE: Final = N_HISTORY + 3


def history_inputs(before: Tensor) -> Tensor:
    """Inputs of the direct term, from the statuses before each month.

    Args:
        before: (B, T) codes; entry t is the status before month t, 8 where there is no month before.

    Returns:
        (B, T, 19) float32: missed k = 1..12 months ago; the last miss faded by months since; three times
        the share of months missed, shrunk to a tenth; log (1 + n) of misses so far; the fade for 60 days and
        more; log (1 + n) of months seen and of months late, or not late, in a row; the fade for grace
        periods. Zeros before the first status. Entry t uses entries <= t.
    """
    array = before.cpu().numpy().astype(np.int64)
    out = np.zeros((*array.shape, N_HISTORY), dtype=np.float32)
    _observe_all(array, out)
    return torch.from_numpy(out).to(before.device)


@numba.njit(inline="always")
def observe(state: np.ndarray, status: int) -> None:
    """One month on: (N_STATE,) inputs and counts updated in place by the status just seen (a code 0-7)."""
    miss = _F(1.0) if _DAYS_30 <= status <= _DAYS_90 else _F(0.0)
    state[_RUN_LENGTH] = state[_RUN_LENGTH] + _F(1.0) if state[0] == miss else _F(1.0)
    state[_MISSES] += miss
    state[_MONTHS] += _F(1.0)
    for lag in range(LAGS - 1, 0, -1):
        state[lag] = state[lag - 1]
    state[0] = miss
    state[_RECENT] = _F(1.0) if miss else state[_RECENT] * _FADE
    state[_SHARE] = _F(3.0) * (state[_MISSES] + _F(0.3)) / (state[_MONTHS] + _F(3.0))
    state[_COUNT] = _LOG[min(int(state[_MISSES]), _MOST)]
    state[_LATER] = _F(1.0) if _DAYS_60 <= status <= _DAYS_90 else state[_LATER] * _FADE
    state[_AGE] = _LOG[min(int(state[_MONTHS]), _MOST)]
    state[_RUN] = _LOG[min(int(state[_RUN_LENGTH]), _MOST)]
    state[_SOFT] = _F(1.0) if status == _GRACE else state[_SOFT] * _FADE


@numba.njit(cache=True, nogil=True)
def _observe_all(before: np.ndarray, out: np.ndarray) -> None:
    for row in range(before.shape[0]):
        state = np.zeros(N_STATE, dtype=np.float32)
        for month in range(before.shape[1]):
            if before[row, month] < 8:
                observe(state, before[row, month])
            out[row, month] = state[:N_HISTORY]
