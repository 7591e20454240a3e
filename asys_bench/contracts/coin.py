"""The sampling coin: one number u in [0, 1) per call, the same for all hooks of that call.

A hook keeps a call if u is below its own rate, so two hooks keep the same call with the smaller of their
rates, and each with its own. u is a function of what every packet carries and of a key: nothing is kept
from call to call, so whoever knows the key can compute it, in any order. SplitMix64's finaliser (Steele,
Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) of a counter in four
dimensions; the strides are 2^64 / x^i, i = 1..4, of the root of x^5 = x + 1, made odd (Roberts, "The
unreasonable effectiveness of quasirandom sequences", 2018). All arithmetic is modulo 2^64::

    z = key + host_step * S1 + weights_version * S2 + microbatch * S3 + call_index * S4
    u = (mix(z) >> 11) * 2^-53

The weights version is in it because a call index starts anew with it: the minibatches of PPO differ in
nothing else. coin.hpp is the same function in C++: for the compiled hook call, and as `compiled_toss`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

compiled_toss: Callable[[int, Sequence[int], int], float] | None
"""`toss` of (key, (host_step, weights_version, microbatch, ...), call_index); None: it was not compiled."""
try:
    from asys_bench.contracts.native._coin import toss as compiled_toss
except ImportError:
    compiled_toss = None

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
STEP, VERSION, MICROBATCH, CALL = (
    0xDB4F0B9175AE2165, 0xBBE0563303A4615F, 0xA0F2EC75A1FE1575, 0x89E182857D9ED689,
)  # fmt: skip
"""S1 to S4."""


@overload
def mix(z: int) -> int: ...
@overload
def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]: ...
def mix(z: Any) -> Any:
    """SplitMix64's finaliser, of 0 <= z < 2^64, or of each of an array of uint64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hashed(*columns: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """64 bits of each tuple of whole numbers: uint64[n]. A column is int64[n], or one number for all."""
    import numpy as np  # here: a host that tosses needs none of it

    parts = np.broadcast_arrays(*(np.atleast_1d(each).astype(np.int64) for each in columns))
    found = np.zeros(parts[0].shape, dtype=np.uint64)
    for numbers in parts:
        found = mix(found + np.uint64(GOLDEN) + numbers.view(np.uint64))
    return found


def coin_key(seed: int, source: int, hook: str | None = None) -> int:
    """The key of the calls of one rank; hook: of a hook with a coin of its own."""
    key = mix((mix((seed + GOLDEN) & MASK) + (source + 1) * GOLDEN) & MASK)
    return key if hook is None else mix(key ^ zlib.crc32(hook.encode()))


def toss(key: int, host_step: int, weights_version: int, microbatch: int, call_index: int) -> float:
    """u of one call."""
    z = key + host_step * STEP + weights_version * VERSION
    z = (z + microbatch * MICROBATCH + call_index * CALL) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK  # `mix`: a call less, in a hook
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def tosses(
    key: int,
    host_step_N: npt.NDArray[np.uint64],
    weights_version_N: npt.NDArray[np.uint64],
    microbatch_N: npt.NDArray[np.uint64],
    call_index_N: npt.NDArray[np.uint64],
) -> npt.NDArray[np.float64]:
    """`toss` of each of several calls, float64[N]."""
    z_N = key + host_step_N * STEP + weights_version_N * VERSION
    z_N = mix(z_N + microbatch_N * MICROBATCH + call_index_N * CALL)
    u_N: npt.NDArray[np.float64] = (z_N >> 11).astype("float64") * 2.0**-53
    return u_N
