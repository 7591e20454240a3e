"""Entry point `asys.kernel: int8`."""

from asys_bench.contracts.preprocessor import KernelPlugin
from asys_bench.kernels.int8.config import Int8Options
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.simd.implementations import TORCH

plugin = KernelPlugin(
    name="int8",
    summary="one signed byte per element, one float32 scale per row",
    options=Int8Options,
    build=lambda options: Int8Preprocessor(),
    decoder=lambda encoding: Int8Preprocessor(TORCH) if encoding == "int8" else None,
)
