"""Compiled inner loops of the cascade sampler: LSTM gates and the draw of the next status.

Here: kernels over rows, vectorised by the compiler. Matrix products stay with torch (`cascade_sampler`).
bfloat16 numbers travel as uint16: their bits are the upper half of a float32.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pc_pipeline.models.cascade_history import N_HISTORY, observe
from pc_pipeline.schemas.states import N_STATUSES

_LIVING = 5  # statuses 0-4 live
_GRACE, _PAID_OFF, _PREPAID = 1, 6, 7
_START = N_STATUSES
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1, _MULTIPLY_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_F = np.float32


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def fast_exp(x: Any) -> Any:
    """e**x in float32 for |x| <= 30, relative error 4e-6 (polynomial on [-1/2, 1/2], exponent by bits)."""
    x = min(max(x, _F(-30.0)), _F(30.0))
    t = x * _F(1.4426950408889634)
    n = np.int32(np.floor(t + _F(0.5)))
    f = t - _F(n)
    p = _F(1.3333558e-3)
    p = p * f + _F(9.6181291e-3)
    p = p * f + _F(5.5504109e-2)
    p = p * f + _F(2.4022651e-1)
    p = p * f + _F(6.9314718e-1)
    p = p * f + _F(1.0)
    return p * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(inline="always")
def widen(bits: Any) -> Any:
    """bfloat16 bits -> float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@numba.njit(inline="always")
def narrow(x: Any) -> Any:
    """float32 -> bfloat16 bits, to nearest even."""
    bits = _F(x).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x)."""
    return _F(1.0) / (_F(1.0) + fast_exp(-x))


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def tanh(x: Any) -> Any:
    """(1 - e**-2x) / (1 + e**-2x), saturated beyond |x| = 9."""
    e = fast_exp(_F(-2.0) * min(max(x, _F(-9.0)), _F(9.0)))
    return (_F(1.0) - e) / (_F(1.0) + e)


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def activate(wide: np.ndarray, width: int) -> None:
    """Products of one row (4H,), order i f g o, to gates in place."""
    both, candidate, out = wide[: 2 * width], wide[2 * width : 3 * width], wide[3 * width :]
    for j in range(both.shape[0]):
        both[j] = sigmoid(both[j])
    for j in range(candidate.shape[0]):
        candidate[j] = tanh(candidate[j])
    for j in range(out.shape[0]):
        out[j] = sigmoid(out[j])


# In the kernels below: one-dimensional rows, indices from 0 and short loops over few arrays. The compiler
# vectorises these, and not negative starts or long loops over many arrays that might overlap.


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _advance(wide: np.ndarray, cell: np.ndarray, hidden: np.ndarray) -> None:
    """One row: products (4H,) and cell (H,) -> new cell in place, hidden (H,)."""
    width = cell.shape[0]
    activate(wide, width)
    for k in range(width):
        cell[k] = wide[width + k] * cell[k] + wide[k] * wide[2 * width + k]
    for k in range(width):
        hidden[k] = wide[3 * width + k] * tanh(cell[k])


@numba.njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def gates_bfloat16(
    gates: np.ndarray, cell: np.ndarray, own: np.ndarray, above: np.ndarray, hidden: np.ndarray, rows: int
) -> None:
    """One layer, one month. gates: (R, 4H) uint16, order i f g o. cell: (R, H) float32, updated.

    own, above: (R, >= H) uint16 places of the new hidden state in this and the next layer's inputs.
    hidden: (R, H) float32 copy of it.
    """
    width = cell.shape[1]
    wide = np.empty(4 * width, dtype=np.float32)
    for row in range(rows):
        products, h, mine, next_ = gates[row], hidden[row], own[row], above[row]
        for j in range(4 * width):
            wide[j] = widen(products[j])
        _advance(wide, cell[row], h)
        for k in range(width):
            mine[k] = narrow(h[k])
        for k in range(width):
            next_[k] = narrow(h[k])


@numba.njit(cache=True, fastmath=True, error_model="numpy", nogil=True)
def gates_float32(
    gates: np.ndarray, cell: np.ndarray, own: np.ndarray, above: np.ndarray, hidden: np.ndarray, rows: int
) -> None:
    """`gates_bfloat16` for float32 products."""
    width = cell.shape[1]
    for row in range(rows):
        h, mine, next_ = hidden[row], own[row], above[row]
        _advance(gates[row], cell[row], h)
        for k in range(width):
            mine[k] = h[k]
        for k in range(width):
            next_[k] = h[k]


@numba.njit(inline="always")
def _mix64(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLY_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLY_2
    return value ^ (value >> np.uint64(31))


@numba.njit(inline="always")
def _uniform(seed: np.uint64, number: np.uint64, month: np.uint64) -> float:
    """The same function of (seed, number, month) as `loans.counter.counter_uniform` with a last key of 0."""
    state = _mix64(seed + _GOLDEN)
    state = _mix64((state ^ number) + _GOLDEN)
    state = _mix64((state ^ month) + _GOLDEN)
    state = _mix64(state + _GOLDEN)
    return (float(state >> np.uint64(11)) + 0.5) / 9007199254740992.0


@numba.njit(cache=True, nogil=True)
def draw_statuses(
    residual: np.ndarray,
    base: np.ndarray,
    own: np.ndarray,
    shift: np.ndarray,
    seen: np.ndarray,
    history: np.ndarray,
    allowed: np.ndarray,
    forced: np.ndarray,
    final_month: np.ndarray,
    has_end: bool,
    seed: np.uint64,
    numbers: np.ndarray,
    month: int,
    status: np.ndarray,
    rows: int,
) -> int:
    """Draw the status of `month` (from 0) for the first `rows` rows; returns how many live on.

    residual: (R, 8) of the network. base: (9, 8) log-odds by status before. own: (R, 72) D[s] x of each row.
    shift: (R, 72) or (0, 0), the same of its calendar and macro. seen: (R, N_STATE) what its history says,
    updated by the status before; history: (9, 19, 8) its weights. forced: (R,) status given, or -1.
    status: (R,) before -> after.
    """
    weight, memory = np.empty(N_STATUSES), np.empty(N_STATUSES, dtype=np.float32)
    living = 0
    shifted = shift.shape[0] > 0
    for row in range(rows):
        before = status[row]
        if before != _START:
            observe(seen[row], before)
        if forced[row] >= 0:
            status[row] = forced[row]
            living += forced[row] < _LIVING
            continue
        memory[:] = _F(0.0)
        for k in range(N_HISTORY):
            value, effect = seen[row, k], history[before, k]
            if value != 0.0:
                for to in range(N_STATUSES):
                    memory[to] += value * effect[to]
        top = -1e30
        for to in range(N_STATUSES):
            if allowed[before, to]:
                logit = residual[row, to] + base[before, to] + own[row, before * N_STATUSES + to] + memory[to]
                if shifted:
                    logit += shift[row, before * N_STATUSES + to]
                weight[to] = logit
                top = max(top, logit)
        for to in range(N_STATUSES):
            weight[to] = fast_exp(_F(weight[to] - top)) if allowed[before, to] else 0.0
        if before < _LIVING and month + 1 >= final_month[row]:
            weight[_PAID_OFF] += weight[0] + weight[_GRACE] + weight[_PREPAID]
            weight[0] = weight[_GRACE] = weight[_PREPAID] = 0.0
        elif has_end and before < _LIVING:
            weight[_PREPAID] += weight[_PAID_OFF]
            weight[_PAID_OFF] = 0.0
        total = 0.0
        for to in range(N_STATUSES):
            total += weight[to]
        left = total * _uniform(seed, numbers[row], np.uint64(month))
        chosen = -1
        for to in range(N_STATUSES):
            if weight[to] > 0.0 and (chosen < 0 or left >= 0.0):
                chosen = to
                left -= weight[to]
        status[row] = chosen
        living += chosen < _LIVING
    return living
