"""Runs every Triton encoder in Triton's interpreter beside its torch reference.

    TRITON_INTERPRET=1 python triton_check.py

A process of its own, because the variable must be set before Triton is first imported. Prints JSON:
encoding -> {"cases": n, "bytes": n, "different": [descriptions]}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asys_bench.capture.gpu.route import launch_stages, route_of
from asys_bench.contracts.chain import chain_decoder
from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor, rows_and_width
from asys_bench.registry import registry

ENCODINGS = (
    "cast.bfloat16",
    "cast.float16",
    "int8",
    "fp8.e4m3fn",
    "topk.k5.float32",
    "topk.k5.bfloat16",
    "topk.k1.float32",
    "topk.k65536.float32",
    "random_projection.gaussian.d70.seed3",
    "random_projection.achlioptas.d3.seed0",
    "token_sample.rows7.seed1",
    "token_sample.fraction0.3.seed2",
    "token_sample.every3.seed0",
    "token_sample.rows7.seed1+int8",
    "token_sample.fraction0.3.seed2+topk.k5.bfloat16",
    "token_sample.every3.seed0+random_projection.gaussian.d8.seed0",
    "random_projection.gaussian.d40.seed0+token_sample.rows4.seed0+fp8.e4m3fn",
    "token_sample.rows7.seed1+identity",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SPECIAL = (0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-40, 6e-39, 3e38, -65520.0,
           1e-7, 448.0, -464.0, 0.015625, 2.0**-10, 1.5 * 2.0**-10, 127.5, -0.5, 2.5, 3.4e38)  # fmt: skip


def build(encoding: str) -> Preprocessor:
    """A fresh preprocessor that computes with plain torch, from its name."""

    def part(name: str) -> Preprocessor:
        for kernel in registry("kernel").names():
            found = registry("kernel").get(kernel, KernelPlugin).decoder(name)
            if found is not None:
                return found
        raise LookupError(name)

    return chain_decoder(encoding, part)


def tensors(dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    yield "row", random(5)
    yield "scalar", torch.tensor(-2.5, dtype=dtype)
    yield "empty rows", random(0, 4)
    yield "empty columns", random(4, 0)
    yield "one column", random(9, 1)
    yield "matrix", random(12, 37)
    yield "narrow tiles", random(35, 129)
    yield "wide", random(3, 1100, scale=30.0)
    yield "wider than a tile", random(2, 4500)
    yield "three dimensions", random(2, 5, 33)
    yield "transposed", random(11, 9).t()
    yield "every other column", random(6, 40)[:, ::2]
    yield "heads", random(2, 5, 3, 8).transpose(1, 2)
    yield "five dimensions, permuted", random(2, 3, 2, 2, 5).permute(3, 1, 0, 2, 4)
    yield "offset", random(70)[3:].view(-1, 1).expand(67, 4)
    yield "broadcast rows", random(1, 6).expand(5, 6)
    yield "zeros", torch.zeros(3, 17, dtype=dtype)
    yield "minus zeros", torch.full((2, 5), -0.0, dtype=dtype)
    yield "tiny", random(4, 16, scale=1e-38)
    yield "huge", random(4, 16, scale=1e38)
    yield "ties", torch.randint(-2, 3, (6, 50), generator=generator).to(dtype)
    special = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    yield "special", special.repeat(3, 1)
    yield "special rows", torch.stack([special.roll(i)[:7] for i in range(20)])
    yield "only NaN", torch.full((2, 6), float("nan"), dtype=dtype)
    steps = torch.arange(-1024, 1024, dtype=torch.float64) / 1024 * 448
    yield "steps", torch.stack([steps, steps.roll(1) * 1.37]).to(dtype)
    if dtype is torch.float32:
        pattern = torch.randint(-(2**31), 2**31, (40, 61), generator=generator)
        yield "any bits", pattern.to(torch.int32).view(torch.float32)


def cases(encoding: str) -> Iterator[tuple[str, torch.dtype, torch.Tensor]]:
    """What the interpreter gets through in seconds: topk walks a row 33 times, a projection takes its
    columns one by one. On a GPU everything is tried (tests/gpu)."""
    dtypes = DTYPES
    if "topk" in encoding:
        dtypes = (torch.float32, torch.bfloat16) if encoding == "topk.k5.float32" else DTYPES[:1]
    for dtype in dtypes:
        for name, tensor in tensors(dtype):
            rows, width = rows_and_width(tensor.shape)
            if not ("topk" in encoding and rows > 6) and not ("proj" in encoding and width > 40):
                yield name, dtype, tensor


def expected(kernel: Preprocessor, tensor: torch.Tensor) -> tuple[bytes, Any]:
    out = bytearray(kernel.encoded_bytes(tensor))
    encoded = kernel.encode(tensor, memoryview(out))
    return bytes(out[: encoded.nbytes]), encoded


def compare(encoding: str) -> dict[str, Any]:
    reference = build(encoding)
    route = route_of(build(encoding))
    different: list[str] = []
    count = nbytes = 0
    if route.encode_on_host:
        return {"cases": 0, "bytes": 0, "different": ["no device encoder was found"]}
    for name, dtype, tensor in cases(encoding):
        want, encoded = expected(reference, tensor)
        before = tensor.clone()
        plan = route.plan(tensor)
        out = torch.full((plan.encoded.nbytes,), 0xEE, dtype=torch.uint8)
        launch_stages(tensor, out, plan.stages)
        got = bytes(out.numpy())
        count += 1
        nbytes += len(want)
        same_meta = (
            plan.encoded.dtype is encoded.dtype
            and tuple(plan.encoded.shape) == tuple(encoded.shape)
            and plan.encoded.params == encoded.params
            and plan.encoded.row_rate == encoded.row_rate
        )
        changed = not torch.equal(before.nan_to_num(), tensor.nan_to_num())
        if got != want or not same_meta or changed:
            where = [i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b]
            different.append(
                f"{name} {dtype} {tuple(tensor.shape)}: {len(got)} bytes for {len(want)}, "
                f"{len(where)} differ from {where[:8]}, meta {same_meta}, changed {changed}"
            )
    return {"cases": count, "bytes": nbytes, "different": different}


def through_the_streamer() -> dict[str, Any]:
    """The whole path, from `submit` to the producer, with the kernels that production uses."""
    sys.path.append(str(Path(__file__).parents[4]))
    from tests.unit.capture.gpu.rig import Rig

    rig = Rig(threaded=True)
    different = []
    names = ("int8", "token_sample.rows7.seed1+int8", "topk.k5.float32", "identity")
    kernels = {name: (build(name), build(name)) for name in names}
    tensor = torch.randn(12, 40).t()
    for name, (kernel, _) in kernels.items():
        rig.streamer.prepare(kernel, [torch.float32])
        if rig.submit(tensor, kernel, key=name) is not None:
            different.append(f"{name} was dropped")
    rig.streamer.close(1000)
    for (name, (_, reference)), payload in zip(kernels.items(), rig.payloads(), strict=True):
        if payload != expected(reference, tensor.contiguous())[0]:
            different.append(f"{name} differs")
    different += rig.device.violations
    return {"cases": len(names), "bytes": sum(map(len, rig.payloads())), "different": different}


def main() -> None:
    chosen = sys.argv[1:] or ENCODINGS
    results = {encoding: compare(encoding) for encoding in chosen}
    if not sys.argv[1:]:
        results["the whole path"] = through_the_streamer()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
