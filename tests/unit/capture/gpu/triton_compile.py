"""Compiles every Triton kernel for real GPUs, as the encoders launch them, without having one.

    TRITON_CACHE_DIR=/some/empty/folder python triton_compile.py 80 90

Arguments are compute capabilities. The launches are real up to the point where a kernel would be
handed to the driver. Prints JSON: encoding -> [{"capability", "kernel", "ptx", "cubin_bytes"}].
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from asys_bench.capture.gpu.route import ENCODERS

ENCODINGS = (
    "identity",
    "cast.bfloat16",
    "cast.float16",
    "int8",
    "fp8.e4m3fn",
    "topk.k32.float32",
    "topk.k32.bfloat16",
    "random_projection.gaussian.d64.seed0",
)


class AbsentGpu:
    """A Triton driver that only knows what to compile for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    compiled: list[Any] = []

    def compile_only(self: Any, grid: Any) -> Any:
        return lambda *arguments, **options: compiled.append(
            self.run(*arguments, grid=grid, warmup=True, **options)
        )

    JITFunction.__getitem__ = compile_only
    results: dict[str, list[dict[str, Any]]] = {encoding: [] for encoding in ENCODINGS}
    for capability in map(int, sys.argv[1:]):
        driver.set_active(AbsentGpu(capability))
        for encoding in ENCODINGS:
            plugin = ENCODERS.get(encoding.partition(".")[0], object)
            compiled.clear()
            encoder = plugin.build(encoding)
            encoder.warm_up(torch.device("cpu"), [torch.bfloat16])
            results[encoding] += [
                {
                    "capability": capability,
                    "kernel": kernel.name,
                    "ptx": kernel.asm["ptx"],
                    "cubin_bytes": len(kernel.asm["cubin"]),
                }
                for kernel in compiled
            ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
