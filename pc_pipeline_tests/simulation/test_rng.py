"""Philox: the published known-answer vectors, agreement of both writings, and uniformity."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from scipy import stats

from pc_pipeline.core.errors import SimulationError
from pc_pipeline.simulation import rng

# Random123 1.14, kat_vectors, philox4x32 10: counter (4 words), key (2 words), result (4 words).
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@njit
def compiled(c, k):
    return rng.philox(c[0], c[1], c[2], c[3], k[0], k[1])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    c, k = np.array(words(counter), np.uint64), np.array(words(key), np.uint64)
    assert [int(word) for word in compiled(c, k)] == words(expected)
    by_numpy = rng.philox_numpy([word[None] for word in c], (int(k[0]), int(k[1])))
    assert [int(word[0]) for word in by_numpy] == words(expected)


def test_numpy_and_numba_draw_the_same_bits():
    keys = rng.loan_keys([f"L{i}" for i in range(50)])
    k0, k1 = rng.seed_key(3)
    for month, purpose in [(0, rng.MOVE), (5, rng.MOVE), (5, rng.SEVERITY), (599, rng.MOVE)]:
        compiled_u = [
            rng.uniform(k0, k1, int(key) & 0xFFFFFFFF, int(key) >> 32, 7, month, purpose) for key in keys
        ]
        np.testing.assert_array_equal(
            rng.uniforms(3, keys, 7, month, purpose), np.array(compiled_u, np.float32)
        )


def test_uniform_and_independent_across_every_part_of_the_key():
    keys = rng.loan_keys([f"L{i}" for i in range(20_000)])
    base = rng.uniforms(1, keys, 0, 0)
    assert stats.kstest(base, "uniform").pvalue > 1e-3
    bound = 4 / np.sqrt(keys.size)  # four standard errors of a correlation
    others = [
        rng.uniforms(2, keys, 0, 0),
        rng.uniforms(1, keys, 1, 0),
        rng.uniforms(1, keys, 0, 1),
        rng.uniforms(1, keys, 0, 4),
        rng.uniforms(1, keys, 0, 0, rng.SEVERITY),
        np.roll(base, 1),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < bound
    assert base.min() >= 0.0
    assert base.max() < 1.0


def test_loans_that_share_a_name_are_refused():
    with pytest.raises(SimulationError, match="appears twice"):
        rng.loan_keys(["a", "b", "a"])
