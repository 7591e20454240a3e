"""Entry point `asys.kernel: identity`."""

from asys_bench.contracts.preprocessor import KernelPlugin
from asys_bench.kernels.identity.config import IdentityOptions
from asys_bench.kernels.identity.kernel import IdentityPreprocessor
from asys_bench.kernels.simd.implementations import TORCH

plugin = KernelPlugin(
    name="identity",
    summary="the tensor's own bytes, lossless",
    options=IdentityOptions,
    build=lambda options: IdentityPreprocessor(),
    decoder=lambda encoding: IdentityPreprocessor(TORCH) if encoding == "identity" else None,
)
