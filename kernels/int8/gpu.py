"""int8 on the device. Entry point `asys.device_encoder: int8`."""

from __future__ import annotations

from asys_bench.kernels.int8.kernel import CODE_MAX
from asys_bench.kernels.triton_runtime.encoder import GpuPlugin, TritonEncoder
from asys_bench.kernels.triton_runtime.scaled_rows import ScaledRowsEncoder


def _build(encoding: str) -> TritonEncoder | None:
    return ScaledRowsEncoder(encoding, CODE_MAX, fp8=False) if encoding == "int8" else None


plugin = GpuPlugin("int8", "int8 codes and row scales, one Triton kernel", _build)
