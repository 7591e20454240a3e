"""One contract over every registered preprocessor, and over chains of them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.contracts.chain import link
from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError
from asys_bench.contracts.preprocessor import KernelPlugin, Role, Stage
from asys_bench.registry import registry
from asys_bench.sinks.decoding import Decoder

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
KERNELS = registry("kernel").names()
OF_ANY_DTYPE = ("identity", "heads", "token_sample")
ENDS = [n for n in KERNELS if registry("kernel").get(n, KernelPlugin).role is Role.ENCODER]
STAGES = [n for n in KERNELS if n not in ENDS]
CHAINS = [
    *((name,) for name in KERNELS),
    *((stage, end) for stage in STAGES for end in ENDS),
    ("token_sample", "random_projection"),
    ("random_projection", "token_sample", "int8"),
    ("heads", "token_sample", "int8"),
]
MANY_INPUTS = [
    chain if len(chain) in (1, 3) else pytest.param(chain, marks=pytest.mark.rest)
    for chain in CHAINS
]
"""As CHAINS; those of two kernels are slow together."""


def step(name):
    plugin = registry("kernel").get(name, KernelPlugin)
    reason = plugin.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return plugin.build(plugin.options())


def encoder_of(chain):
    return link([step(name) for name in chain])


def decoder_of(encoding):
    """The consumer's side: it knows the interned name and nothing else."""
    return Decoder({7: encoding}.__getitem__)


def packet_of(encoded, payload, **changes):
    values = {
        "dtype": encoded.dtype, "shape": tuple(encoded.shape), "params": encoded.params
    } | changes  # fmt: skip
    return ActivationPacket(
        0, 0, 0, 0, Kind.ACTIVATION, values["dtype"], values["shape"], 0, 0, 0, 7, values["params"],
        1.0, 0, 0, -1, None, payload,
    )  # fmt: skip


def encoded_by(encoder, tensor):
    reserved = bytearray(b"\xa5" * encoder.encoded_bytes(tensor))
    encoded = encoder.encode(tensor, memoryview(reserved))
    assert encoded.nbytes <= len(reserved)
    assert 0 < encoded.row_rate <= 1
    return encoded, memoryview(reserved)[: encoded.nbytes]


def round_trip(chain, tensor):
    encoder = encoder_of(chain)
    before = tensor.clone()
    encoded, payload = encoded_by(encoder, tensor)
    assert torch.equal(tensor, before) or bool(tensor.isnan().any()), "the host's tensor changed"
    decoded = decoder_of(encoder.encoding)(packet_of(encoded, payload))
    assert decoded.dtype is encoded.dtype
    assert tuple(decoded.shape) == tuple(encoded.shape)
    return encoder, encoded, decoded


def made(shape, dtype, layout, seed):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1)
    if layout == "strided" and tensor.dim() and tensor.shape[-1]:
        return tensor[..., ::2]
    if layout == "expanded":
        return tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor


@pytest.mark.parametrize("chain", MANY_INPUTS, ids="+".join)
@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    seed=st.integers(0, 2**31),
)
def test_decode_is_within_the_stated_error_of_its_target(chain, shape, dtype, layout, seed):
    tensor = made(shape, dtype, layout, seed)
    encoder, encoded, decoded = round_trip(chain, tensor)
    target = encoder.target(tensor, encoded)
    assert target.shape == decoded.shape
    error = (decoded.double() - target.double()).abs()
    assert bool((error <= encoder.max_error(target).double()).all())


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_non_finite_values_stay_non_finite(chain):
    tensor = torch.tensor([[1.0, float("nan"), float("inf"), -float("inf"), 0.5], [1.0] * 5])
    encoder, encoded, decoded = round_trip(chain, tensor)
    finite = encoder.target(tensor, encoded).isfinite()
    assert bool(decoded.isfinite()[finite].all())
    if chain != ("random_projection", "topk"):  # 64 NaN in a row, of which topk keeps 32
        assert torch.equal(decoded.isfinite(), finite)


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_zeros_stay_zeros(chain):
    _, _, decoded = round_trip(chain, torch.zeros(4, 70))
    assert not bool(decoded.any())


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_a_payload_of_the_wrong_size_is_a_typed_error(chain):
    encoder = encoder_of(chain)
    encoded, payload = encoded_by(encoder, torch.randn(4, 80))
    decode = decoder_of(encoder.encoding)
    with pytest.raises(PacketError):
        decode(packet_of(encoded, payload[: encoded.nbytes - 5]))
    with pytest.raises(PacketError):
        decode(packet_of(encoded, memoryview(b"")))


@pytest.mark.parametrize("chain", MANY_INPUTS, ids="+".join)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.sampled_from([0, 1, 3, 80, 2**16 + 1, 2**32 - 1]), max_size=8),
    dtype=st.sampled_from([*FLOATS, torch.int8, torch.bool, torch.float8_e4m3fn]),
    params=st.binary(min_size=16, max_size=16),
    payload=st.binary(max_size=1200),
)
def test_a_header_full_of_lies_is_decoded_or_refused_but_never_trusted(
    chain, shape, dtype, params, payload
):
    decode = decoder_of(encoder_of(chain).encoding)
    encoded = encoded_by(encoder_of(chain), torch.ones(1, 3))[0]
    packet = packet_of(
        encoded, memoryview(bytearray(payload)), shape=tuple(shape), dtype=dtype, params=params
    )
    try:
        decoded = decode(packet)
        assert tuple(decoded.shape) == tuple(shape)
        assert decoded.dtype is dtype
        assert decoded.numel() <= 2**24, "a few bytes must not become a huge tensor"
    except PacketError:
        pass
    try:
        rows = decode.rows(packet)
        assert rows is None or len(rows) == shape[0]
    except PacketError:
        pass


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_the_hosts_random_state_is_not_drawn_from(chain):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    round_trip(chain, torch.ones(16, 16))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_the_input_is_neither_kept_nor_tracked_by_autograd(chain):
    tensor = torch.randn(8, 16, requires_grad=True)
    view = tensor * 2
    encoder = encoder_of(chain)
    encoded, payload = encoded_by(encoder, view)
    decoded = decoder_of(encoder.encoding)(packet_of(encoded, payload))
    assert not decoded.requires_grad
    kept = decoded.clone()
    with torch.no_grad():
        view.zero_()
    assert torch.equal(decoded, kept)


@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_too_little_room_is_a_typed_error(chain):
    encoder, tensor = encoder_of(chain), torch.randn(4, 80)
    with pytest.raises(ValueError):  # PacketError is one; torch and numba raise their own
        encoder.encode(tensor, memoryview(bytearray(3)))


@pytest.mark.parametrize("name", [n for n in KERNELS if n not in OF_ANY_DTYPE])
def test_a_dtype_that_cannot_be_carried_is_a_typed_error(name):
    encoder = step(name)
    with pytest.raises(PacketError, match=r"float32.*identity"):
        encoder.encoded_bytes(torch.ones(4, 4, dtype=torch.int32))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_travel_by_identity_and_sampling(name, dtype):
    if name not in OF_ANY_DTYPE:
        pytest.skip("computes with floating-point numbers")
    tensor = (torch.arange(60).reshape(3, 4, 5) % 2).to(dtype)
    encoder, encoded, decoded = round_trip((name,), tensor)
    assert torch.equal(decoded, encoder.target(tensor, encoded))


@pytest.mark.parametrize("name", KERNELS)
def test_an_unknown_encoding_is_left_to_other_kernels(name):
    decoder = registry("kernel").get(name, KernelPlugin).decoder
    for encoding in ("no-such-encoding", "", name + ".", name + ".k0.float32", "+", "+" + name):
        assert decoder(encoding) is None


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_says_the_truth_about_its_role(name):
    assert isinstance(step(name), Stage) == (
        registry("kernel").get(name, KernelPlugin).role is not Role.ENCODER
    )


@pytest.mark.parametrize("name", KERNELS)
def test_every_encoding_name_can_be_interned(name):
    assert 0 < len(step(name).encoding.encode()) <= 60
    assert "+" not in step(name).encoding


@pytest.mark.parametrize("chain", [c for c in CHAINS if "token_sample" in c], ids="+".join)
def test_a_consumer_learns_which_rows_were_kept(chain):
    if chain[0] != "token_sample":
        pytest.skip("rows are compared with the captured tensor's")
    tensor = torch.arange(40.0)[:, None].expand(40, 64).reshape(8, 5, 64)
    encoder = link([step(name) for name in chain])
    for draw in range(3):
        encoded, payload = encoded_by(encoder, tensor)
        packet = packet_of(encoded, payload)
        rows = decoder_of(encoder.encoding).rows(packet)
        assert rows is not None
        assert len(rows) == encoded.shape[0] == 10
        assert np.array_equal(rows, np.unique(rows)), "ascending, no repeats"
        total, number, inner, first, *rest = struct.unpack("<IIBxHHH", packet.params)
        assert (total, number) == (40, draw)
        assert (inner, first, rest) == (1, 5, [0, 0]), "the dimension after the first"
        assert decoder_of(encoder.encoding).grid(packet) == (8, 5)
        if "random_projection" not in chain and "topk" not in chain:
            decoded = decoder_of(encoder.encoding)(packet)
            assert np.allclose(decoded[:, 0].numpy(), rows, rtol=0.07)
