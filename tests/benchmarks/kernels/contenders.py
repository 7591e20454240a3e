"""What is timed: the kernels in every implementation, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from asys_bench.contracts.chain import link
from asys_bench.contracts.packet import tensor_view
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.kernels.cast.kernel import IMPLEMENTATIONS as CAST
from asys_bench.kernels.cast.kernel import CastPreprocessor
from asys_bench.kernels.fp8.kernel import Fp8Preprocessor
from asys_bench.kernels.identity.kernel import IMPLEMENTATIONS as IDENTITY
from asys_bench.kernels.identity.kernel import IdentityPreprocessor
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.random_projection.kernel import IMPLEMENTATIONS as PROJECTION
from asys_bench.kernels.random_projection.kernel import (
    MatrixRule,
    RandomProjectionPreprocessor,
    dense,
)
from asys_bench.kernels.simd import native
from asys_bench.kernels.simd.implementations import TORCH
from asys_bench.kernels.token_sample.kernel import Rule, TokenSamplePreprocessor
from asys_bench.kernels.topk.kernel import IMPLEMENTATIONS as TOPK
from asys_bench.kernels.topk.kernel import TopKPreprocessor

PROJECTED = MatrixRule("gaussian", 64, 0)
TOPK_K = 32
Call = Callable[[torch.Tensor, memoryview], object]


@dataclass(frozen=True)
class Contender:
    """`call` is timed. plain: the contender that says what this costs without us, if any."""

    name: str
    call: Call
    plain: str = ""


def kernels() -> Iterator[tuple[str, Callable[[str], Preprocessor], list[str], str]]:
    """(name, builder by implementation, implementations, the plain version's name)."""
    scaled = Int8Preprocessor.implementations.names()
    yield "int8", Int8Preprocessor, scaled, "plain int8"
    yield "fp8", Fp8Preprocessor, Fp8Preprocessor.implementations.names(), "plain fp8"
    yield "bfloat16", lambda i: CastPreprocessor("bfloat16", i), CAST.names(), "plain bfloat16"
    yield "float16", lambda i: CastPreprocessor("float16", i), CAST.names(), "plain float16"
    yield "topk", lambda i: TopKPreprocessor(TOPK_K, "float32", i), TOPK.names(), "plain topk"
    yield "identity", IdentityPreprocessor, IDENTITY.names(), "plain copy"
    yield (
        "token_sample every 4 + int8",
        lambda i: link([TokenSamplePreprocessor(Rule(0, every=4), i), Int8Preprocessor(i)]),
        scaled,
        "",
    )
    yield (
        "token_sample a quarter + int8",
        lambda i: link([TokenSamplePreprocessor(Rule(0, fraction=0.25), i), Int8Preprocessor(i)]),
        scaled,
        "",
    )
    yield (
        "random_projection to 64",
        lambda i: RandomProjectionPreprocessor(PROJECTED, i),
        PROJECTION.names(),
        "plain projection",
    )


def verified(
    name: str, build: Callable[[str], Preprocessor], implementation: str, tensor: torch.Tensor
) -> Preprocessor | None:
    """The encoder, or None (said on the terminal) when its bytes are not the reference's."""
    written = []
    for each in (implementation, TORCH):
        encoder = build(each)
        out = bytearray(encoder.encoded_bytes(tensor))
        encoded = encoder.encode(tensor, memoryview(out))
        written.append(bytes(out[: encoded.nbytes]))
    if written[0] != written[1]:
        print(f"{name} {implementation}: not timed, its bytes differ from the reference's")
        return None
    return build(implementation)


def contenders(tensor: torch.Tensor, only: str, slow: bool) -> Iterator[Contender]:
    """Everything to time for tensors like `tensor`; `slow` includes the torch references."""
    module = native.load()
    if module is None:
        raise SystemExit("the compiled module is missing; nothing to measure against")
    isa = max(native.instruction_sets().values())
    yield Contender("read once (C++ sum)", lambda x, out: module.read_sum(x, isa))
    yield Contender("torch.sum", lambda x, out: x.sum())
    plain = dict(plain_versions(tensor))
    for name, build, implementations, plain_name in kernels():
        if only and only not in name:
            continue
        if plain_name:
            yield Contender(plain_name, plain[plain_name])
        for implementation in implementations:
            if implementation == TORCH and not slow:
                continue
            encoder = verified(name, build, implementation, tensor)
            if encoder is not None:
                yield Contender(f"{name}, {implementation}", encoder.encode, plain_name)


def plain_versions(tensor: torch.Tensor) -> Iterator[tuple[str, Call]]:
    """What one would write in torch, with the result copied into `out`."""
    rows, width = tensor.shape
    matrix = torch.from_numpy(dense(PROJECTED.panels(width), PROJECTED.d_out).copy())

    def codes(
        out: memoryview, dtype: torch.dtype, width: int = width, offset: int = 0
    ) -> torch.Tensor:
        return tensor_view(out, dtype, (rows, width), offset=offset)

    def int8(x: torch.Tensor, out: memoryview) -> None:
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        codes(out, torch.float32, 1).copy_(scale)
        codes(out, torch.int8, offset=4 * rows).copy_((x / scale).round())

    def fp8(x: torch.Tensor, out: memoryview) -> None:
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
        codes(out, torch.float32, 1).copy_(scale)
        codes(out, torch.float8_e4m3fn, offset=4 * rows).copy_(x / scale)

    def topk(x: torch.Tensor, out: memoryview) -> None:
        index = x.abs().topk(TOPK_K, dim=1).indices
        codes(out, torch.float32, TOPK_K).copy_(x.gather(1, index))
        codes(out, torch.int16, TOPK_K, 4 * rows * TOPK_K).copy_(index)

    yield "plain int8", int8
    yield "plain fp8", fp8
    yield "plain bfloat16", lambda x, out: codes(out, torch.bfloat16).copy_(x)
    yield "plain float16", lambda x, out: codes(out, torch.float16).copy_(x)
    yield "plain topk", topk
    yield "plain copy", lambda x, out: codes(out, torch.float32).copy_(x)
    yield "plain projection", lambda x, out: codes(out, torch.float32, 64).copy_(x @ matrix)
