"""What the numba twins share: typed decorators, and 16- and 32-bit floats as integers.

Twins stand in where the C++ module was not compiled. They are compiled when their module is imported,
which an encoder does while it is built and never in a hook. numba does not know bfloat16, and float16
only on GPUs, so words are widened to the bits of a float32 by integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts.preprocessor import Positions, rows_and_width
from asys_bench.kernels.simd.scaled_rows import largest_scale
from asys_bench.kernels.simd.sections import aligned, check_positions, two_sections

F = TypeVar("F", bound=Callable[..., Any])
Array = npt.NDArray[Any]
Number = Any
"""A number in compiled code: numba's types are not Python's (an int64 here is no `int` to mypy)."""
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What a word is; the number that `widen` takes."""
WORDS = (numba.uint32[:, :], numba.uint16[:, :])
"""Types of `words`: float32 as uint32, the two 16-bit floats as uint16."""


def inner(function: F) -> F:
    """A function that only compiled functions call; it becomes part of theirs."""
    return cast(F, numba.njit(error_model="numpy", inline="never")(function))


def entry(*arguments: Any) -> Callable[[F], F]:
    """A function that Python calls with (words, ...): compiled now, for both types of words.

    It runs without the GIL and returns nothing.
    """

    def decorate(function: F) -> F:
        signatures = [numba.void(words, *arguments) for words in WORDS]
        return cast(F, numba.njit(signatures, error_model="numpy", nogil=True)(function))

    return decorate


def words_of(tensor: torch.Tensor) -> Array | None:
    """The rows as words [N, D], a view where torch can make one; None for other dtypes and devices."""
    if tensor.dtype not in KINDS or not tensor.is_cpu:
        return None
    rows = tensor.detach().reshape(rows_and_width(tensor.shape))
    if tensor.dtype is torch.float32:
        return rows.view(torch.int32).numpy().view(np.uint32)
    return rows.view(torch.int16).numpy().view(np.uint16)


def chosen(positions: Positions | None, rows: int) -> Positions:
    """`positions`, checked, or those of all rows.

    Raises:
        PacketError: a position is not a row.
    """
    if positions is None:
        return np.arange(rows, dtype=np.int64)
    check_positions(positions, rows)
    return np.array(positions, dtype=np.int64)


@inner
def widen(word: Number, kind: Number) -> Number:
    """The bits of a float32 that equals the word; NaN stays NaN."""
    if kind == 0:
        return word
    if kind == 1:
        return word << 16
    sign = (word & 0x8000) << 16
    exponent = (word >> 10) & 31
    mantissa = word & 0x3FF
    if exponent == 31:
        return sign | 0x7F800000 | (mantissa << 13)
    if exponent > 0:
        return sign | ((exponent + 112) << 23) | (mantissa << 13)
    if mantissa == 0:
        return sign
    exponent = 113
    while mantissa & 0x400 == 0:
        mantissa <<= 1
        exponent -= 1
    return sign | (exponent << 23) | ((mantissa & 0x3FF) << 13)


@inner
def shifted(mantissa: Number, shift: Number) -> Number:
    """mantissa / 2^shift, rounded half to even; mantissa below 2^24, shift at least 1."""
    if shift > 25:
        return 0
    result = mantissa >> shift
    rest = mantissa & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    if rest > half or (rest == half and result & 1 == 1):
        result += 1
    return result


@inner
def to_bfloat16(bits: Number) -> Number:
    """Round the bits of a float32 to bfloat16."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FC0
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@inner
def to_float16(bits: Number) -> Number:
    """Round the bits of a float32 to float16."""
    sign = (bits >> 16) & 0x8000
    size = bits & 0x7FFFFFFF
    if size > 0x7F800000:
        return 0x7E00
    if size >= 0x477FF000:  # 65520 and more
        return sign | 0x7C00
    if size >= 0x38800000:  # 2^-14, the smallest normal float16
        return sign | ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13)
    return sign | shifted((size & 0x7FFFFF) | 0x800000, 126 - (size >> 23))


@inner
def to_e4m3(bits: Number) -> Number:
    """Round the bits of a finite float32 to float8_e4m3fn, saturating at 448."""
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    if size > 0x43E00000:  # 448
        size = 0x43E00000
    if size >= 0x3C800000:  # 2^-6, the smallest normal e4m3
        return sign | ((size - 0x3C000000 + 0x7FFFF + ((size >> 20) & 1)) >> 20)
    return sign | shifted((size & 0x7FFFFF) | 0x800000, 141 - (size >> 23))


@inner
def row_scale(
    words: Array,
    row: Number,
    kind: Number,
    values: Array,
    bits: Array,
    code_max: Number,
    most: Number,
) -> tuple[Number, Number]:
    """Widen a row into `values` (whose memory `bits` views); scale and 1 / step of `scaled_rows`."""
    peak = np.float32(2.0**-117)
    for j in range(words.shape[1]):
        bits[j] = widen(np.int64(words[row, j]), kind)
        if bits[j] & 0x7FFFFFFF < 0x7F800000:
            peak = max(peak, abs(values[j]))
    return min(peak / np.float32(code_max), np.float32(most)), np.float32(code_max) / peak


def write_scaled(
    tensor: torch.Tensor,
    out: memoryview,
    positions: Positions | None,
    *,
    encode: Callable[..., None],
    code_dtype: npt.DTypeLike,
    code_max: float,
) -> int | None:
    """The payload of `scaled_rows` in `out`, and its bytes; None: not a tensor for compiled code.

    encode: (words, kind, rows, scales, codes, code_max, largest scale), compiled.
    """
    words = words_of(tensor)
    if words is None:
        return None
    rows = chosen(positions, len(words))
    shape = (len(rows), words.shape[1])
    nbytes = two_sections(4 * shape[0], shape[0] * shape[1])
    if nbytes:
        start = aligned(4 * shape[0])
        scales = np.frombuffer(out, np.float32, shape[0])
        codes: Any = np.frombuffer(out, code_dtype, shape[0] * shape[1], start).reshape(shape)
        out[4 * shape[0] : start] = bytes(start - 4 * shape[0])
        kind = KINDS[tensor.dtype]
        encode(words, kind, rows, scales, codes, code_max, largest_scale(code_max))
    return nbytes
