"""One contract over every registered preprocessor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError
from asys_bench.contracts.preprocessor import KernelPlugin
from asys_bench.registry import registry

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


KERNELS = registry("kernel").names()


def build(name):
    plugin = registry("kernel").get(name, KernelPlugin)
    reason = plugin.unavailable()
    if reason is not None:
        pytest.skip(reason)
    encoder = plugin.build(plugin.options())
    decoder = plugin.decoder(encoder.encoding)
    assert decoder is not None, "a kernel decodes what it encodes"
    return encoder, decoder


def packet_of(encoded, payload):
    return ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, encoded.dtype, encoded.shape, 0, 0, 0, 0, encoded.params,
        1.0, 0, 0, -1, None, payload,
    )  # fmt: skip


def round_trip(name, tensor):
    encoder, decoder = build(name)
    before = tensor.clone()
    reserved = bytearray(encoder.encoded_bytes(tensor))
    encoded = encoder.encode(tensor, memoryview(reserved))
    assert encoded.nbytes <= len(reserved)
    assert torch.equal(tensor, before) or bool(tensor.isnan().any()), "the host's tensor changed"
    decoded = decoder.decode(packet_of(encoded, memoryview(reserved)[: encoded.nbytes]))
    assert decoded.dtype is encoded.dtype
    assert tuple(decoded.shape) == encoded.shape
    return encoder, decoded


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(["contiguous", "transposed", "strided"]),
    seed=st.integers(0, 2**31),
)
def test_decode_is_within_the_stated_error(name, shape, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    if layout == "transposed" and tensor.dim() > 1:
        tensor = tensor.transpose(0, -1)
    elif layout == "strided" and tensor.dim() and tensor.shape[-1]:
        tensor = tensor[..., ::2]
    encoder, decoded = round_trip(name, tensor)
    error = (decoded.double() - tensor.double()).abs()
    assert bool((error <= encoder.max_error(tensor).double()).all())


@pytest.mark.parametrize("name", KERNELS)
def test_non_finite_values_stay_non_finite(name):
    tensor = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 0.5])
    _, decoded = round_trip(name, tensor)
    assert torch.equal(decoded.isfinite(), tensor.isfinite())


@pytest.mark.parametrize("name", KERNELS)
def test_a_short_payload_is_a_typed_error(name):
    encoder, decoder = build(name)
    tensor = torch.randn(4, 8)
    reserved = bytearray(encoder.encoded_bytes(tensor))
    encoded = encoder.encode(tensor, memoryview(reserved))
    with pytest.raises(PacketError):
        decoder.decode(packet_of(encoded, memoryview(reserved)[: encoded.nbytes - 5]))


@pytest.mark.parametrize("name", KERNELS)
def test_the_hosts_random_state_is_not_drawn_from(name):
    before = torch.random.get_rng_state()
    round_trip(name, torch.ones(16, 16))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", KERNELS)
def test_an_unknown_encoding_is_left_to_other_kernels(name):
    assert registry("kernel").get(name, KernelPlugin).decoder("no-such-encoding") is None
