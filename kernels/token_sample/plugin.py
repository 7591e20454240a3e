"""Entry point `asys.kernel: token_sample`."""

from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor, Role
from asys_bench.kernels.simd.implementations import TORCH
from asys_bench.kernels.token_sample.config import TokenSampleOptions
from asys_bench.kernels.token_sample.kernel import TokenSamplePreprocessor
from asys_bench.kernels.token_sample.rule import rule_of, rule_of_name


def _build(options: TokenSampleOptions) -> Preprocessor:
    return TokenSamplePreprocessor(rule_of(options))


def _decoder(encoding: str) -> Preprocessor | None:
    prefix, _, name = encoding.partition(".")
    rule = rule_of_name(name) if prefix == "token_sample" else None
    return TokenSamplePreprocessor(rule, TORCH) if rule is not None else None


plugin = KernelPlugin(
    name="token_sample",
    summary="some rows of each tensor: a share, a number or every n-th",
    options=TokenSampleOptions,
    build=_build,
    decoder=_decoder,
    role=Role.SAMPLER,
)
