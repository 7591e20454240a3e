"""Entry point `asys.kernel: topk`."""

import re

from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor
from asys_bench.kernels.simd.implementations import TORCH
from asys_bench.kernels.topk.config import TopKOptions
from asys_bench.kernels.topk.kernel import TopKPreprocessor

_ENCODING = re.compile(r"topk\.k([1-9][0-9]{0,4})\.(float32|bfloat16)")


def _build(options: TopKOptions) -> Preprocessor:
    return TopKPreprocessor(options.k, options.values)


def _decoder(encoding: str) -> Preprocessor | None:
    found = _ENCODING.fullmatch(encoding)
    return TopKPreprocessor(int(found[1]), found[2], TORCH) if found else None


plugin = KernelPlugin(
    name="topk",
    summary="the k largest magnitudes of each row; the rest decodes to zero",
    options=TopKOptions,
    build=_build,
    decoder=_decoder,
)
