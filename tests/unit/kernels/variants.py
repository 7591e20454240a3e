"""Every kernel in every implementation that can run here, and tensors that are hard on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.kernels.cast.kernel import IMPLEMENTATIONS as CAST
from asys_bench.kernels.cast.kernel import CastPreprocessor
from asys_bench.kernels.fp8.kernel import Fp8Preprocessor
from asys_bench.kernels.identity.kernel import IMPLEMENTATIONS as IDENTITY
from asys_bench.kernels.identity.kernel import IdentityPreprocessor
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.random_projection.kernel import IMPLEMENTATIONS as PROJECTION
from asys_bench.kernels.random_projection.kernel import MatrixRule, RandomProjectionPreprocessor
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.token_sample.kernel import Rule, TokenSamplePreprocessor
from asys_bench.kernels.topk.kernel import IMPLEMENTATIONS as TOPK
from asys_bench.kernels.topk.kernel import TopKPreprocessor


@dataclass(frozen=True)
class Variant:
    """One kernel with one set of options; `build` takes the name of an implementation."""

    name: str
    build: Callable[[str], Preprocessor]
    implementations: Implementations


VARIANTS = [
    Variant("identity", IdentityPreprocessor, IDENTITY),
    Variant("cast.bfloat16", lambda i: CastPreprocessor("bfloat16", i), CAST),
    Variant("cast.float16", lambda i: CastPreprocessor("float16", i), CAST),
    Variant("int8", Int8Preprocessor, Int8Preprocessor.implementations),
    Variant("fp8", Fp8Preprocessor, Fp8Preprocessor.implementations),
    Variant("topk.k1.float32", lambda i: TopKPreprocessor(1, "float32", i), TOPK),
    Variant("topk.k3.bfloat16", lambda i: TopKPreprocessor(3, "bfloat16", i), TOPK),
    Variant("topk.k40.float32", lambda i: TopKPreprocessor(40, "float32", i), TOPK),
    Variant(
        "token_sample.every2", lambda i: TokenSamplePreprocessor(Rule(0, every=2), i), IDENTITY
    ),
    Variant("token_sample.rows3", lambda i: TokenSamplePreprocessor(Rule(5, count=3), i), IDENTITY),
    *(
        Variant(
            f"random_projection.{kind}.{d_out}",
            lambda i, kind=kind, d_out=d_out: RandomProjectionPreprocessor(
                MatrixRule(kind, d_out, 3), i
            ),
            PROJECTION,
        )
        for kind, d_out in (("gaussian", 5), ("gaussian", 70), ("achlioptas", 64))
    ),
]
FAST = [
    (variant, name)
    for variant in VARIANTS
    for name in variant.implementations.names()
    if name != TORCH
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [
    "contiguous",
    "rows apart",
    "two gaps",
    "last strided",
    "transposed",
    "expanded",
    "flipped",
]
FILLS = ["normal", "any bits", "few values", "huge and tiny", "increasing"]


def filled(count: int, dtype: torch.dtype, fill: str, seed: int) -> torch.Tensor:
    """`count` elements of `dtype`; "any bits" has NaN of all kinds, infinities and subnormals."""
    rng = np.random.default_rng(seed)
    if fill == "any bits":
        if dtype is torch.float32:
            bits = rng.integers(0, 1 << 32, count, dtype=np.uint32)
            return torch.from_numpy(bits.view(np.float32))
        return torch.from_numpy(
            rng.integers(0, 1 << 16, count, dtype=np.uint16).view(np.int16)
        ).view(dtype)
    if fill == "few values":
        values = rng.choice([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, 127.0, -127.0, 448.0], count)
    elif fill == "huge and tiny":
        values = rng.standard_normal(count) * 10.0 ** rng.integers(-45, 39, count)
    elif fill == "increasing":
        values = np.arange(count) * 0.37
    else:
        values = rng.standard_normal(count)
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32)).to(dtype)


def laid_out(
    shape: list[int], dtype: torch.dtype, layout: str, fill: str, seed: int
) -> torch.Tensor:
    """A tensor of (about) `shape` whose memory is arranged as `layout` says."""

    def dense(*sizes: int) -> torch.Tensor:
        return filled(int(np.prod(sizes, dtype=np.int64)), dtype, fill, seed).reshape(sizes)

    if not shape:
        return dense()
    *leading, width = shape
    if layout == "rows apart":
        return dense(*leading, width + 3)[..., :width]
    if layout == "two gaps" and leading:
        return dense(*leading[:-1], leading[-1] + 2, width + 1)[..., 1 : leading[-1] + 1, :width]
    if layout == "last strided":
        return dense(*leading, 2 * width)[..., ::2]
    if layout == "transposed" and leading:
        return dense(width, *leading).movedim(0, -1)
    if layout == "expanded":
        return dense(1, width).expand(*leading, width) if leading else dense(1).expand(width)
    if layout == "flipped" and len(leading) > 1:
        return dense(*reversed(leading), width).transpose(0, len(leading) - 1)
    return dense(*shape)


def payload(
    encoder: Preprocessor, tensor: torch.Tensor, offset: int = 0
) -> tuple[bytes, tuple[object, ...]]:
    """What the encoder wrote `offset` bytes past a cache line's start, and what it said."""
    room = encoder.encoded_bytes(tensor)
    memory = np.full(room + 128 + offset, 0xA5, dtype=np.uint8)
    start = -memory.ctypes.data % 64 + offset
    encoded = encoder.encode(tensor, memory[start:].data)
    assert encoded.nbytes <= room
    assert bool((memory[:start] == 0xA5).all()), "it wrote before its memory"
    assert bool((memory[start + room :] == 0xA5).all()), "it wrote past what it asked for"
    said = (encoded.nbytes, encoded.dtype, tuple(encoded.shape), encoded.params, encoded.row_rate)
    return memory[start : start + encoded.nbytes].tobytes(), said
