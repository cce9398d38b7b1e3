"""Counter-based random numbers: a pure function of (seed, path, loan, month).

Here: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") for
numba and for numpy, and how a loan or a seed becomes a key. Not here: named streams for everything that
is drawn once (`core.rng`), what the numbers are used for (`simulation.kernel`).

One block of four 32-bit words serves four consecutive months of one loan on one path:

    counter = (loan key low, loan key high, path, purpose << 24 | month // 4),   word month % 4

Nothing depends on batch, thread or order, so any sub-range of paths can be drawn alone. The scenario is
not in the key: scenarios share random numbers, and their differences are not noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numba import njit

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.core.rng import derive_seed

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
N_ROUNDS = 10
MOVE, SEVERITY = 0, 1  # purposes: which state next, how much is lost
UNIT = np.float32(2.0**-24)  # 24 bits fill a float32 below 1 exactly

_M0, _M1 = np.uint64(MULTIPLIER_0), np.uint64(MULTIPLIER_1)
_W0, _W1 = np.uint64(WEYL_0), np.uint64(WEYL_1)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(inline="always")
def philox(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Philox4x32-10: four 32-bit words from a 128-bit counter and a 64-bit key.

    All arguments and results are uint64 that hold 32 bits: in numba uint32 arithmetic widens silently,
    so the width is spelled out.
    """
    for _ in range(N_ROUNDS):
        product_0, product_1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> _HALF) ^ c1 ^ k0,
            product_1 & _LOW,
            (product_0 >> _HALF) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(inline="always")
def block_word(purpose: int, month: int) -> np.uint64:
    """Last counter word of the block that holds a month's number."""
    return np.uint64((purpose << 24) | (month >> 2))


@njit(cache=True, nogil=True)
def uniform(k0: int, k1: int, key_low: int, key_high: int, path: int, month: int, purpose: int) -> np.float32:
    """The float32 uniform on [0, 1) of one loan, path, month and purpose."""
    words = philox(
        np.uint64(key_low),
        np.uint64(key_high),
        np.uint64(path),
        block_word(purpose, month),
        np.uint64(k0),
        np.uint64(k1),
    )
    slot = month & 3
    word = words[0]
    if slot == 1:
        word = words[1]
    elif slot == 2:
        word = words[2]
    elif slot == 3:
        word = words[3]
    return np.float32(word >> np.uint64(8)) * UNIT


def philox_numpy(counter: Sequence[np.ndarray], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """`philox` over arrays of uint64; the readable twin that the tests hold against the known vectors."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(N_ROUNDS):
        product_0, product_1 = _M0 * c0, _M1 * c2
        c0, c2 = (product_1 >> _HALF) ^ c1 ^ np.uint64(k0), (product_0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + WEYL_0) & 0xFFFFFFFF, (k1 + WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniforms(seed: int, loan_key_L: np.ndarray, path_id: int, month: int, purpose: int = MOVE) -> np.ndarray:
    """(L,) float32 uniforms of one path and month, the same bits as the kernel draws."""
    keys = np.asarray(loan_key_L, dtype=np.uint64)
    counter = (
        keys & _LOW,
        keys >> _HALF,
        np.full(keys.shape, path_id, np.uint64),
        np.full(keys.shape, (purpose << 24) | (month >> 2), np.uint64),
    )
    word = philox_numpy(counter, seed_key(seed))[month & 3]
    return (word >> np.uint64(8)).astype(np.float32) * UNIT


def seed_key(seed: int) -> tuple[int, int]:
    """The Philox key of a seed: two 32-bit words."""
    value = derive_seed(seed, "simulation")
    return value & 0xFFFFFFFF, value >> 32


def loan_keys(loan_ids: Sequence[str]) -> np.ndarray:
    """(L,) uint64 keys of loans: BLAKE2b of the identifier, so a loan keeps its numbers in any pool.

    Raises:
        SimulationError: two loans share an identifier and would share their fate.
    """
    digests = b"".join(hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in loan_ids)
    keys = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    if np.unique(keys).size != keys.size:
        raise SimulationError("a loan appears twice in the pool", expected="unique loan_id", where="pool")
    return keys
