"""SplitMix64 as a hash of (seed, draw, index): random numbers that touch no generator of the host.

Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. All arithmetic is
modulo 2^64, with G = 0x9E3779B97F4A7C15::

    mix(z):       z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27;
                  z *= 0x94D049BB133111EB; z ^= z >> 31
    draw_key:     key = mix(mix(seed + G) + (draw + 1) * G)
    hash 32 bits: h(i) = mix(key + (i + 1) * G) >> 32
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.coin import GOLDEN, MASK, mix

G = GOLDEN
_A, _B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Words = npt.NDArray[np.uint64]


@lru_cache(maxsize=64)
def _seed_key(seed: int) -> int:
    return mix((seed + G) & MASK)


def draw_key(seed: int, draw: int) -> int:
    """The key of one draw."""
    return mix((_seed_key(seed) + (draw + 1) * G) & MASK)


def hash32(key: int, index: int) -> int:
    """h(index)."""
    return mix((key + (index + 1) * G) & MASK) >> 32


def hashes32(key: int, index: Words) -> Words:
    """h of every element of `index`, each below 2^32."""
    z = (index + np.uint64(1)) * np.uint64(G) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_A)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_B)
    result: Words = (z ^ (z >> np.uint64(31))) >> np.uint64(32)
    return result
