"""fp8 on the device. Entry point `asys.device_encoder: fp8`."""

from __future__ import annotations

from asys_bench.kernels.fp8.kernel import CODE_MAX, ENCODING
from asys_bench.kernels.triton_runtime.encoder import GpuPlugin, TritonEncoder
from asys_bench.kernels.triton_runtime.scaled_rows import ScaledRowsEncoder


def _build(encoding: str) -> TritonEncoder | None:
    return ScaledRowsEncoder(encoding, CODE_MAX, fp8=True) if encoding == ENCODING else None


plugin = GpuPlugin("fp8", "e4m3 codes and row scales, one Triton kernel", _build)
