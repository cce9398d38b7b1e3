"""Named random streams. Here: how a seed and a name become a generator. Not here: any drawing.

A stream is addressed by (seed, *names). Two different names never share a stream, the same name
always gives the same bits, and nothing depends on the order in which streams are opened.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called `names` under `seed` (BLAKE2b, stable across versions)."""
    text = "\x1f".join([str(int(seed)), *(str(name) for name in names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *names: object) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011) for the stream called `names` under `seed`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *names)))
