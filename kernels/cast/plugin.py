"""Entry point `asys.kernel: cast`."""

from asys_bench.contracts.preprocessor import KernelOptions, KernelPlugin, Preprocessor
from asys_bench.kernels.cast.kernel import TARGETS, CastOptions, CastPreprocessor


def _build(options: KernelOptions) -> Preprocessor:
    assert isinstance(options, CastOptions)
    return CastPreprocessor(options.dtype)


def _decoder(encoding: str) -> Preprocessor | None:
    prefix, _, dtype = encoding.partition(".")
    return CastPreprocessor(dtype) if prefix == "cast" and dtype in TARGETS else None


plugin = KernelPlugin(
    name="cast",
    summary="floating-point tensors as float16 or bfloat16",
    options=CastOptions,
    build=_build,
    decoder=_decoder,
)
