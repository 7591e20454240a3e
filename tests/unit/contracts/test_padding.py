"""What stands behind a padded payload is read as untrusted, and gives the rows of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.chain import chain_decoder
from asys_bench.contracts.encodings.padding import PADDED, beside_bytes, write_count
from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError, tensor_bytes
from asys_bench.kernels.identity.kernel import IdentityPreprocessor
from asys_bench.kernels.token_sample.kernel import TokenSamplePreprocessor, rule_of_name

SAMPLED = "token_sample.rows5.seed3"


def find(encoding):
    if encoding == "identity":
        return IdentityPreprocessor("torch")
    return TokenSamplePreprocessor(rule_of_name(encoding.partition(".")[2]), "torch")


def padded(tensor, real, encoding="identity"):
    """A packet, and the decoder that its encoding's name gives."""
    kernel, decoder = find(encoding), chain_decoder(f"{PADDED}+{encoding}", find)
    room = kernel.encoded_bytes(tensor)
    scratch = bytearray(room)
    encoded = kernel.encode(tensor, memoryview(scratch))
    payload = scratch[: encoded.nbytes] + bytes(np.asarray(real, np.uint8)) + bytes(4)
    assert len(payload) == encoded.nbytes + beside_bytes(len(real))
    write_count(memoryview(payload), len(real))
    packet = ActivationPacket(
        0, 0, 0, 1, Kind.ACTIVATION, encoded.dtype, tuple(encoded.shape), 0, 1, 0, 2, encoded.params,
        1.0, 0, 0, -1, None, memoryview(payload),
    )  # fmt: skip
    return packet, decoder


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_reader_gets_the_rows_of_tokens_in_order(real):
    tensor = torch.arange(12.0).reshape(2, 3, 2)
    packet, decoder = padded(tensor, real)
    expected = tensor.reshape(6, 2)[torch.tensor(real)]
    assert torch.equal(decoder.decode(packet).reshape(-1, 2), expected)
    assert decoder.rows(packet) is None
    assert decoder.grid(packet) == ((2, 3) if all(real) else (sum(real),))


def test_without_padding_the_tensor_keeps_its_shape():
    tensor = torch.arange(12.0).reshape(2, 3, 2)
    packet, decoder = padded(tensor, [True] * 6)
    assert torch.equal(decoder.decode(packet), tensor)


@given(st.lists(st.booleans(), min_size=20, max_size=20))
def test_rows_that_were_sampled_are_counted_among_the_tokens(real):
    tensor = torch.arange(20.0)[:, None].expand(20, 2).contiguous()
    packet, decoder = padded(tensor, real, SAMPLED)
    rows_ND = decoder.decode(packet)
    tokens = tensor[torch.tensor(real)]
    assert torch.equal(rows_ND, tokens[torch.from_numpy(decoder.rows(packet))])


@pytest.mark.parametrize("rows", [0, 5, 7, 100, 2**32 - 1])
def test_a_count_that_does_not_fit_is_refused(rows):
    packet, decoder = padded(torch.ones(2, 3, 2), [True] * 6)
    payload = bytearray(packet.payload)
    write_count(memoryview(payload), rows)
    wrong = replace(packet, payload=memoryview(payload))
    for ask in (decoder.decode, decoder.rows, decoder.grid):
        with pytest.raises(PacketError, match="a mask of"):
            ask(wrong)


@given(st.binary(max_size=64), st.sampled_from(["identity", SAMPLED]))
def test_any_bytes_are_rows_or_an_error_of_the_packet(payload, encoding):
    packet, decoder = padded(torch.ones(6, 2), [True] * 6, encoding)
    wrong = replace(packet, payload=memoryview(payload))
    for ask in (decoder.decode, decoder.rows, decoder.grid):
        try:
            ask(wrong)
        except PacketError:
            continue


def test_only_devices_write_it():
    decoder = chain_decoder(f"{PADDED}+identity", find)
    with pytest.raises(PacketError, match="devices alone"):
        decoder.encode(torch.ones(2, 2), tensor_bytes(torch.ones(8)))
    assert decoder.payload_bytes((2, 3), torch.float32) == 24 + 2 + 4
