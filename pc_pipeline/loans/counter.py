"""Counter-based random numbers: a uniform is a function of (seed, three keys) and of nothing else.

Here: the hash (SplitMix64 finaliser, Steele, Lea and Flood 2014, chained over the keys) and normals from
it. Hence a draw does not depend on order, batch or thread. Not here: named streams (`core.rng`).
"""

from __future__ import annotations

import numba
import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TO_UNIT = 1.0 / 9007199254740992.0  # 2**-53


@numba.njit(cache=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """SplitMix64 finaliser: a bijection of 64 bits that scatters neighbours."""
    value = (value ^ (value >> _SHIFT_30)) * _MULTIPLY_1
    value = (value ^ (value >> _SHIFT_27)) * _MULTIPLY_2
    return value ^ (value >> _SHIFT_31)


@numba.njit(cache=True, inline="always")
def counter_uniform(seed: np.uint64, a: np.uint64, b: np.uint64, c: np.uint64) -> float:
    """Uniform in (0, 1) for the keys (a, b, c) under `seed`; never 0, never 1."""
    state = mix64(seed + _GOLDEN)
    state = mix64((state ^ a) + _GOLDEN)
    state = mix64((state ^ b) + _GOLDEN)
    state = mix64((state ^ c) + _GOLDEN)
    return (float(state >> _SHIFT_11) + 0.5) * _TO_UNIT


@numba.njit(cache=True)
def _uniforms(seed: np.uint64, a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray) -> None:
    for row in range(out.size):
        out[row] = counter_uniform(seed, a[row], b[row], c[row])


def uniforms(seed: int, a: np.ndarray, b: np.ndarray | int = 0, c: np.ndarray | int = 0) -> np.ndarray:
    """(N,) uniforms in (0, 1), one per row of the non-negative integer keys."""
    keys = np.broadcast_arrays(np.asarray(a), np.asarray(b), np.asarray(c))
    flat = [np.array(key, dtype=np.uint64).ravel() for key in keys]
    out = np.empty(flat[0].size)
    _uniforms(np.uint64(seed), flat[0], flat[1], flat[2], out)
    return out


def normals(seed: int, a: np.ndarray, b: np.ndarray | int = 0, c: np.ndarray | int = 0) -> np.ndarray:
    """(N,) standard normals by inversion of `uniforms`."""
    return ndtri(uniforms(seed, a, b, c))
