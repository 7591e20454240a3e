"""A part says which rows and columns of the whole tensor it is; what a packet says is not trusted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.encodings.parts import (
    UNKNOWN_PLACE,
    Part,
    part_decoder,
    part_name,
    place_of,
)
from asys_bench.contracts.packet import ActivationPacket, Kind, PacketError, tensor_bytes
from asys_bench.sinks.decoding import decoder_of


def packet_of(tensor, params):
    return ActivationPacket(
        0, 0, 0, 1, Kind.PARAMETER_GRADIENT, tensor.dtype, tuple(tensor.shape), 0, 1, 0, 2, params,
        1.0, 0, 0, -1, None, memoryview(bytearray(tensor_bytes(tensor))),
    )  # fmt: skip


@pytest.mark.parametrize("leading", [(12,), (4, 3), (2, 3, 2), (70_000, 3), (3, 70_000)])
def test_rows_and_grid_are_the_whole_tensors(leading):
    decoder = decoder_of("part+identity")
    packet = packet_of(torch.ones(2, 5), Part(None, leading, 4).place_from(3))
    assert decoder.rows(packet).tolist() == [7, 8]
    assert decoder.grid(packet) == leading
    assert torch.equal(decoder.decode(packet), torch.ones(2, 5))


@pytest.mark.parametrize("leading", [(2, 3, 4, 5, 6), (2, 70_000, 3)])
def test_what_does_not_fit_is_not_known(leading):
    packet = packet_of(torch.ones(2, 5), place_of(leading, 1))
    decoder = decoder_of("part+identity")
    assert decoder.rows(packet) is None
    assert decoder.grid(packet) == ()


def test_columns_are_in_the_name():
    name = part_name("int8", (16, 32, 64))
    assert name == "part(16:32/64)+int8"
    assert part_decoder(name, decoder_of).columns == (16, 32, 64)
    assert decoder_of("part+cast.bfloat16").columns is None
    with pytest.raises(PacketError):
        decoder_of("part(1:2)+identity")
    with pytest.raises(PacketError):
        decoder_of("part+nothing")


def test_heads_of_a_part_are_counted_through_the_whole():
    decoder = decoder_of("part+heads.3")
    packet = packet_of(torch.ones(2, 3, 2), place_of((8,), 5))
    assert decoder.rows(packet).tolist() == [15, 16, 17, 18, 19, 20]
    assert decoder.grid(packet) == (8, 3)


def test_rows_past_the_end_are_refused():
    packet = packet_of(torch.ones(3, 5), place_of((8,), 6))
    with pytest.raises(PacketError, match=r"6 \+ 3 of \[8\]"):
        decoder_of("part+identity").rows(packet)


@given(
    st.binary(min_size=16, max_size=16),
    st.lists(st.sampled_from([0, 1, 3, 2**16, 2**32 - 1]), max_size=4),
)
def test_a_header_full_of_lies_makes_no_large_array(params, shape):
    decoder = decoder_of("part+identity")
    packet = replace(packet_of(torch.ones(2, 5), params), shape=tuple(shape))
    try:
        rows = decoder.rows(packet)
        assert rows is None or len(rows) <= 40
        decoder.grid(packet)
    except PacketError:
        pass


def test_an_unknown_place_is_neither_rows_nor_grid():
    packet = packet_of(torch.ones(2, 5), UNKNOWN_PLACE)
    decoder = decoder_of("part+identity")
    assert decoder.rows(packet) is None
    assert decoder.grid(packet) == ()
    assert np.array_equal(decoder.decode(packet).numpy(), np.ones((2, 5)))
