"""The packet header: exact, untrusted, and tensor views that keep their memory exported."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.packet import (
    DTYPE_CODE,
    DTYPES,
    HEADER_BYTES,
    ActivationPacket,
    Kind,
    PacketError,
    PacketMeta,
    checksum,
    pack_header_into,
    tensor_bytes,
    tensor_view,
)

metas = st.builds(
    PacketMeta,
    hook_id=st.integers(0, 2**16 - 1),
    kind=st.sampled_from([int(kind) for kind in Kind]),
    dtype=st.integers(0, len(DTYPES) - 1),
    shape=st.lists(st.integers(0, 2**32 - 1), max_size=8).map(tuple),
    host_step=st.integers(0, 2**64 - 1),
    timestamp_ns=st.integers(0, 2**64 - 1),
    weights_version=st.integers(0, 2**64 - 1),
    encoding_id=st.integers(0, 2**16 - 1),
    params=st.binary(min_size=16, max_size=16),
    sampling_rate=st.floats(0.125, 1.0, width=32),
    call_index=st.integers(0, 2**32 - 1),
    microbatch=st.integers(0, 2**16 - 1),
    token_position=st.integers(-1, 2**31 - 1),
    text=st.integers(0, 255),
)


@given(metas, st.integers(0, 2**64 - 1), st.binary(max_size=64), st.booleans())
def test_a_header_comes_back_as_it_was_written(meta, seq, payload, with_crc):
    frame = bytearray(HEADER_BYTES) + payload
    crc = checksum(payload) if with_crc else None
    pack_header_into(
        frame, 0, meta, seq=seq, shard=3, source=7, payload_bytes=len(payload), crc=crc
    )
    packet = ActivationPacket.unpack(memoryview(frame))
    assert (packet.seq, packet.shard, packet.source) == (seq, 3, 7)
    assert packet.dtype is DTYPES[meta.dtype]
    for name in ("hook_id", "kind", "shape", "host_step", "timestamp_ns", "weights_version"):
        assert getattr(packet, name) == getattr(meta, name)
    for name in ("params", "sampling_rate", "call_index", "microbatch", "token_position", "text"):
        assert getattr(packet, name) == getattr(meta, name)
    assert packet.crc == crc
    assert packet.verify()
    assert bytes(packet.payload) == payload


def test_a_decoded_packet_is_frozen_like_a_made_one():
    frame = bytearray(HEADER_BYTES + 8)
    pack_header_into(frame, 0, PacketMeta(1, 2, 0, (2,)), seq=9, shard=3, source=4, payload_bytes=8)
    packet = ActivationPacket.unpack(memoryview(frame))
    assert type(packet) is ActivationPacket
    assert packet == dataclasses.replace(packet)
    with pytest.raises(dataclasses.FrozenInstanceError):
        packet.seq = 10


def test_a_header_is_found_where_it_lies_and_missed_where_it_does_not():
    frame = bytearray(64 + HEADER_BYTES)
    pack_header_into(frame, 64, PacketMeta(1, 2, 0, ()), seq=9, shard=0, source=0, payload_bytes=0)
    assert ActivationPacket.from_parts(frame, memoryview(b""), 64).seq == 9
    with pytest.raises(PacketError, match="no 128-byte header at 65"):
        ActivationPacket.from_parts(frame, memoryview(b""), 65)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_a_typed_error(noise):
    with pytest.raises(PacketError):
        ActivationPacket.unpack(memoryview(noise))


@given(metas, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_damaged_header_never_raises_anything_else(meta, position, flip):
    frame = bytearray(HEADER_BYTES + 8)
    pack_header_into(frame, 0, meta, seq=0, shard=0, source=0, payload_bytes=8)
    frame[position] ^= flip
    try:
        packet = ActivationPacket.unpack(memoryview(frame))
        packet.raw_tensor()
    except PacketError:
        return
    assert len(packet.payload) == 8


def test_a_changed_payload_fails_its_checksum():
    frame = bytearray(HEADER_BYTES) + b"payload"
    meta = PacketMeta(0, 0, DTYPE_CODE[torch.uint8], (7,))
    pack_header_into(
        frame, 0, meta, seq=0, shard=0, source=0, payload_bytes=7, crc=checksum(b"payload")
    )
    frame[-1] ^= 1
    assert not ActivationPacket.unpack(memoryview(frame)).verify()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("writable", [True, False])
def test_every_dtype_survives_the_bytes_exactly(dtype, writable):
    tensor = torch.arange(-6, 6).reshape(3, 4).to(dtype)
    raw = bytes(tensor_bytes(tensor))
    view = tensor_view(memoryview(bytearray(raw) if writable else raw), dtype, (3, 4))
    assert view.dtype is dtype
    assert torch.equal(view.view(torch.uint8), tensor.view(torch.uint8))


def test_memory_under_a_live_tensor_cannot_be_resized():
    owner = bytearray(64)
    view = tensor_view(memoryview(owner), torch.float32, (4, 4))
    with pytest.raises(BufferError):
        owner.clear()
    del view
    owner.clear()


def test_too_many_dimensions_and_too_few_bytes_are_refused():
    with pytest.raises(PacketError, match="at most 8"):
        pack_header_into(
            bytearray(HEADER_BYTES), 0, PacketMeta(0, 0, 0, (1,) * 9),
            seq=0, shard=0, source=0, payload_bytes=0,
        )  # fmt: skip
    with pytest.raises(PacketError, match="cannot hold"):
        tensor_view(memoryview(b"1234"), torch.float32, (2,))
    with pytest.raises(PacketError, match="contiguous"):
        tensor_bytes(torch.zeros(4, 4).t()[1:])
