"""Entry point `asys.kernel: random_projection`."""

import re

from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor, Role
from asys_bench.kernels.random_projection.config import RandomProjectionOptions
from asys_bench.kernels.random_projection.kernel import RandomProjectionPreprocessor
from asys_bench.kernels.random_projection.matrix import MatrixRule
from asys_bench.kernels.simd.implementations import TORCH

_ENCODING = re.compile(
    r"random_projection\.(gaussian|achlioptas)\.d([1-9][0-9]{0,4})\.seed(0|[1-9][0-9]{0,18})"
)


def _build(options: RandomProjectionOptions) -> Preprocessor:
    rule = MatrixRule(options.matrix, options.d_out, options.seed)
    return RandomProjectionPreprocessor(rule, d_in=options.d_in)


def _decoder(encoding: str) -> Preprocessor | None:
    found = _ENCODING.fullmatch(encoding)
    if found is None:
        return None
    return RandomProjectionPreprocessor(MatrixRule(found[1], int(found[2]), int(found[3])), TORCH)


plugin = KernelPlugin(
    name="random_projection",
    summary="each row times a seeded random matrix",
    options=RandomProjectionOptions,
    build=_build,
    decoder=_decoder,
    role=Role.STAGE,
)
