# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Float formats by integer arithmetic, inside Triton kernels.

The hardware's own conversions differ by architecture (fp8 needs compute capability 8.9) and by NaN
pattern; these give the same bits on every device and in Triton's interpreter. Kernels that use them
are launched with `enable_fp_fusion=False`: `x * y + magic` must not become one fused operation.
"""

import triton
import triton.language as tl

MAGNITUDE = tl.constexpr(0x7FFFFFFF)
INFINITY = tl.constexpr(0x7F800000)
QUIET_NAN = tl.constexpr(0x7FC00000)
QUIET_NAN_BF16 = tl.constexpr(0x7FC0)
QUIET_NAN_FP16 = tl.constexpr(0x7E00)
ROUNDING_INT8 = tl.constexpr(12582912.0)  # 1.5 * 2**23: its last bit is worth 1
ROUNDING_E4M3 = tl.constexpr(16384.0)  # 2**14: its last bit is worth 2**-9, e4m3's smallest step
ROUNDING_E4M3_BITS = tl.constexpr(0x46800000)
SMALLEST_NORMAL_E4M3 = tl.constexpr(0x3C800000)  # 2**-6
REBIAS_E4M3 = tl.constexpr(0x3C000000 - 0x7FFFF)  # (127 - 7) << 23, less what rounds half up
E4M3_NAN = tl.constexpr(0x7F)


@triton.jit
def widened(loaded):
    """float32 of what was loaded: a float, or int16 that holds the bits of a bfloat16.

    Kernels get bfloat16 tensors as int16 (`row_view.loadable`): the interpreter widens subnormal
    bfloat16 wrongly, and a shift is what the hardware does anyway.
    """
    if loaded.dtype == tl.int16:
        return (loaded.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return loaded.to(tl.float32)


@triton.jit
def bits_of(x):
    """int32 bits of a float32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def is_finite(x):
    return (bits_of(x) & MAGNITUDE) < INFINITY


@triton.jit
def is_nan(x):
    return (bits_of(x) & MAGNITUDE) > INFINITY


@triton.jit
def round_half_even(x):
    """The nearest integer as int32, for |x| < 2**22."""
    return ((x + ROUNDING_INT8) - ROUNDING_INT8).to(tl.int32)


@triton.jit
def bfloat16_bits(x):
    """int32 holding the bits of bfloat16(x), rounded to nearest even; every NaN the quiet one."""
    bits = bits_of(x)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(is_nan(x), QUIET_NAN_BF16, rounded)


@triton.jit
def float16_bits(x):
    """int16 bits of float16(x), rounded to nearest even; every NaN the quiet one."""
    return tl.where(is_nan(x), QUIET_NAN_FP16, x.to(tl.float16).to(tl.int16, bitcast=True))


@triton.jit
def e4m3_bits(x):
    """int32 holding the bits of float8_e4m3fn(x) for |x| <= 448, rounded to nearest even."""
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    size = magnitude.to(tl.float32, bitcast=True)
    subnormal = bits_of(size + ROUNDING_E4M3) - ROUNDING_E4M3_BITS
    normal = (magnitude - REBIAS_E4M3 + ((magnitude >> 20) & 1)) >> 20
    code = tl.where(magnitude < SMALLEST_NORMAL_E4M3, subnormal, normal)
    return code | ((bits >> 24) & 0x80)
