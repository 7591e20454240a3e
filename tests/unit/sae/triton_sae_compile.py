"""Compiles every Triton kernel of SAE training for real GPUs, as it is launched, without having one.

    TRITON_CACHE_DIR=/some/empty/folder python triton_sae_compile.py 80 90

Arguments are compute capabilities. Prints JSON: capability -> kernel -> bytes of its code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction


def main() -> None:
    sys.path.append(str(Path(__file__).parents[3]))
    from asys_bench.sae.kernels.choice import _work
    from asys_bench.sae.kernels.triton_kernels import TritonKernels
    from tests.unit.capture.gpu.triton_compile import AbsentGpu

    compiled: list[Any] = []

    def compile_only(self: Any, grid: Any) -> Any:
        return lambda *arguments, **options: compiled.append(
            self.run(*arguments, grid=grid, warmup=True, **options)
        )

    JITFunction.__getitem__ = compile_only
    found: dict[str, dict[str, int]] = {}
    for capability in sys.argv[1:]:
        driver.set_active(AbsentGpu(int(capability)))
        compiled.clear()
        work = _work(64, 4096, 256, 8, torch.device("cpu"))
        work(TritonKernels())
        found[capability] = {kernel.name: len(kernel.asm["cubin"]) for kernel in compiled}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
