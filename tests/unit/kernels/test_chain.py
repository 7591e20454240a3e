"""Chains: which make sense, what is said about the others, and that fusing changes nothing."""

from __future__ import annotations

import pytest
import torch

from asys_bench.config.assembly import AssemblyError, build_preprocessor
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.chain import Chain, chain_decoder, link
from asys_bench.contracts.packet import PacketError
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.simd.implementations import TORCH
from asys_bench.kernels.token_sample.kernel import Rule, TokenSamplePreprocessor

from .variants import payload


def hook(*preprocess):
    return HookConfig(match="layers.*", preprocess=list(preprocess))


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (
            ["int8", "token_sample"],
            "goes on after the encoder int8.*token_sample.*move int8 to the",
        ),
        (["int8", "fp8"], r"2 encoders \(int8, fp8\).*keep one of them"),
        (["identity", "token_sample"], "goes on after the encoder identity.*remove identity"),
        (["token_sample", "identity", "int8"], r"2 encoders \(identity, int8\)"),
        (
            ["token_sample", {"token_sample": {"every": 2}}],
            "samples rows 2 times.*keep one sampler",
        ),
    ],
)
def test_a_chain_that_makes_no_sense_names_hook_chain_and_fix(chain, words):
    with pytest.raises(AssemblyError, match=words) as raised:
        build_preprocessor(hook(*chain))
    assert "the hook on layers.*: preprocess " in str(raised.value)


@pytest.mark.parametrize(
    ("chain", "encoding"),
    [
        (["int8"], "int8"),
        ([{"token_sample": {"every": 4}}, {"int8": {}}], "token_sample.every4.seed0+int8"),
        (
            ["random_projection", {"cast": {"dtype": "float16"}}],
            "random_projection.gaussian.d64.seed0+cast.float16",
        ),
        (
            ["random_projection", "token_sample"],
            "random_projection.gaussian.d64.seed0+token_sample.fraction0.25.seed0",
        ),
        (["token_sample", "identity"], "token_sample.fraction0.25.seed0+identity"),
    ],
)
def test_a_chain_is_named_after_its_steps(chain, encoding):
    assert build_preprocessor(hook(*chain)).encoding == encoding


def test_sampling_before_an_encoder_is_fused_and_writes_the_same_bytes():
    tensor = torch.randn(6, 7, 50).transpose(0, 1)
    fused = Chain([TokenSamplePreprocessor(Rule(3, count=5))], Int8Preprocessor())
    sampler = TokenSamplePreprocessor(Rule(3, count=5), TORCH)
    for _ in range(3):
        kept, params, row_rate = sampler.apply(tensor)
        expected, _ = payload(Int8Preprocessor(TORCH), kept)
        written, said = payload(fused, tensor)
        assert written == expected
        assert said[3:] == (params, row_rate)


def test_a_sampler_in_front_of_a_stage_keeps_its_parameters():
    chain = build_preprocessor(hook({"token_sample": {"rows": 2}}, "random_projection", "int8"))
    _, said = payload(chain, torch.randn(8, 30))
    assert said[2] == (2, 64)
    assert said[3][:1] == b"\x08"
    assert said[4] == 0.25


def test_a_name_that_is_no_chain_is_refused():
    with pytest.raises(PacketError, match="is no chain"):
        chain_decoder("int8+int8", lambda part: Int8Preprocessor(TORCH))
    with pytest.raises(TypeError, match="int8 cannot stand in front of int8"):
        link([Int8Preprocessor(TORCH), Int8Preprocessor(TORCH)])
