"""token_sample on the device: which rows is decided on the host, the next step gathers them.

Entry point `asys.device_encoder: token_sample`.
"""

from __future__ import annotations

from asys_bench.kernels.simd.implementations import TORCH
from asys_bench.kernels.token_sample.kernel import TokenSamplePreprocessor, rule_of_name
from asys_bench.kernels.triton_runtime.encoder import GpuPlugin


def _build(encoding: str) -> TokenSamplePreprocessor | None:
    kernel, _, name = encoding.partition(".")
    rule = rule_of_name(name) if kernel == "token_sample" else None
    return TokenSamplePreprocessor(rule, TORCH) if rule is not None else None


plugin = GpuPlugin("token_sample", "rows chosen by hashing on the host", _build)
