"""Entry point `asys.kernel: fp8`."""

from asys_bench.contracts.preprocessor import KernelPlugin
from asys_bench.kernels.fp8.config import Fp8Options
from asys_bench.kernels.fp8.kernel import ENCODING, Fp8Preprocessor
from asys_bench.kernels.simd.implementations import TORCH

plugin = KernelPlugin(
    name="fp8",
    summary="e4m3 floats of one byte, one float32 scale per row",
    options=Fp8Options,
    build=lambda options: Fp8Preprocessor(),
    decoder=lambda encoding: Fp8Preprocessor(TORCH) if encoding == ENCODING else None,
)
