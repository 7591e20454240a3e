"""Entry point `asys.kernel: identity`."""

from asys_bench.contracts.preprocessor import KernelOptions, KernelPlugin
from asys_bench.kernels.identity.kernel import IdentityPreprocessor

plugin = KernelPlugin(
    name="identity",
    summary="the tensor's own bytes, lossless",
    options=KernelOptions,
    build=lambda options: IdentityPreprocessor(),
    decoder=lambda encoding: IdentityPreprocessor() if encoding == "identity" else None,
)
