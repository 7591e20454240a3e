"""Entry point `asys.kernel: cast`."""

from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor
from asys_bench.kernels.cast.config import CastOptions
from asys_bench.kernels.cast.kernel import CastPreprocessor
from asys_bench.kernels.cast.reference import TARGETS
from asys_bench.kernels.simd.implementations import TORCH


def _build(options: CastOptions) -> Preprocessor:
    return CastPreprocessor(options.dtype)


def _decoder(encoding: str) -> Preprocessor | None:
    prefix, _, dtype = encoding.partition(".")
    return CastPreprocessor(dtype, TORCH) if prefix == "cast" and dtype in TARGETS else None


plugin = KernelPlugin(
    name="cast",
    summary="floating-point tensors as float16 or bfloat16",
    options=CastOptions,
    build=_build,
    decoder=_decoder,
)
