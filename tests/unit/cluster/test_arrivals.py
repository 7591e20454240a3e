"""A batch is read alike by compiled code and with arrays, whatever is in it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.cluster import arrivals, wire
from asys_bench.cluster.arrivals import Arrival, Connection, Writer
from asys_bench.cluster.ledger import SenderKey
from asys_bench.cluster.wire import WireError
from asys_bench.contracts.packet import DTYPES, Kind, PacketMeta, pack_header_into
from tests.unit.cluster.test_wire import HELLO

pytest.importorskip("asys_bench.cluster.native._arrivals")
NS = 10**12
MAX_PACKET = 600
ACCOUNT: Any = object()
WRITERS = {(0, 0): Writer(ACCOUNT, 0, 0), (7, 1): Writer(ACCOUNT, 1, (3 << 40) + 9)}
HOOKS, ENCODINGS = {1: 101, 2: 102}, {0: 100, 3: 65535}
Packet = tuple[tuple[int, int], int, int, int, int, int]
"""Writer, seq, hook, encoding, payload bytes, timestamp."""

packets = st.lists(
    st.tuples(
        st.sampled_from(list(WRITERS)),
        st.integers(0, 4) | st.just(wire.MAX_SEQ),
        st.sampled_from(list(HOOKS)),
        st.sampled_from(list(ENCODINGS)),
        st.sampled_from([0, 1, 64, 472, 473, 900]),
        st.sampled_from([0, 1, 900, NS, (1 << 63) - 1]),
    ),
    min_size=1,
    max_size=12,
)
clocks = st.sampled_from([0, 1000, NS, 2 * NS, (1 << 63) - 1])
offsets = st.none() | st.sampled_from([-NS, 0, 5, NS])


def batch_of(rows: Sequence[Packet], clock_ns: int) -> bytearray:
    entries = wire.entries_of(np.array([128 + nbytes for *_, nbytes, _ in rows]))
    data = bytearray(wire.batch_end(entries))
    for (at, _), (writer, seq, hook, encoding, nbytes, time_ns) in zip(
        entries.tolist(), rows, strict=True
    ):
        meta = PacketMeta(
            hook, 2, 5, (nbytes,), host_step=seq, timestamp_ns=time_ns, encoding_id=encoding
        )
        pack_header_into(
            data, at, meta, seq=seq, source=writer[0], shard=writer[1], payload_bytes=nbytes
        )
    wire.write_batch_head(memoryview(data), 1, clock_ns, entries)
    return data


def outcome(check: Callable[..., Arrival], data: bytes | bytearray, offset_ns: int | None) -> Any:
    """All that a check says and changes."""
    one = Connection(b"p", SenderKey("run", 0, "w"), HELLO, 1, 0.0)
    one.hooks, one.encodings, one.writers = HOOKS, ENCODINGS, WRITERS
    one.clock_offset_ns = offset_ns
    message = bytearray(data)
    try:
        arrival = check(one, 1, memoryview(message), MAX_PACKET, NS)
    except WireError as error:
        assert message == data
        assert (one.clock_offset_ns, one.lag_ns) == (offset_ns, None)
        return error.reason, str(error)
    return (
        arrival.places.tolist(), arrival.ends, list(arrival.runs), arrival.host_step,
        one.clock_offset_ns, one.lag_ns, bytes(message),
    )  # fmt: skip


@given(rows=packets, clock_ns=clocks, offset_ns=offsets)
@settings(deadline=None)
def test_a_sound_batch_is_read_alike(
    rows: list[Packet], clock_ns: int, offset_ns: int | None
) -> None:
    data = bytes(batch_of(rows, clock_ns))
    assert arrivals.compiled is not None
    taken = arrivals.compiled(
        memoryview(bytearray(data)), HOOKS, ENCODINGS, WRITERS, MAX_PACKET, NS, offset_ns,
        len(DTYPES), len(Kind),
    )  # fmt: skip
    assert taken is not None, "compiled code declines a sound batch"
    assert outcome(arrivals.checked, data, offset_ns) == outcome(arrivals._checked, data, offset_ns)


@given(data=st.data(), rows=packets, offset_ns=offsets)
@settings(max_examples=300, deadline=None)
def test_a_damaged_batch_is_refused_alike_and_left_as_it_was(
    data: st.DataObject, rows: list[Packet], offset_ns: int | None
) -> None:
    message = batch_of(rows, 1000)
    headers = [at for at, _ in wire.parse_batch(memoryview(message), 128)[1].tolist()]
    places = st.integers(16, wire.table_end(len(rows)) - 1) | st.builds(
        int.__add__, st.sampled_from(headers), st.integers(0, 127)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(places)] = data.draw(st.sampled_from([0, 1, 2, 8, 127, 128, 255]))
    message = message[: data.draw(st.just(len(message)) | st.integers(16, len(message)))]
    assert outcome(arrivals.checked, message, offset_ns) == outcome(
        arrivals._checked, message, offset_ns
    )


@pytest.mark.parametrize("count", [0, 1 << 16, (1 << 16) + 1, (1 << 32) - 1])
def test_a_count_that_lies_is_refused_alike(count: int) -> None:
    message = batch_of([((0, 0), 0, 1, 0, 64, 5)], 1000)
    struct.pack_into("<I", message, 24, count)
    found = outcome(arrivals.checked, message, None)
    assert found == outcome(arrivals._checked, message, None)
    assert found[0] is wire.Refusal.MALFORMED


def test_a_message_that_is_read_only_is_left_to_the_arrays() -> None:
    data = bytes(batch_of([((0, 0), 0, 1, 0, 64, 5)], 1000))
    assert arrivals.compiled is not None
    assert arrivals.compiled(
        memoryview(data), HOOKS, ENCODINGS, WRITERS, MAX_PACKET, NS, None, len(DTYPES), len(Kind)
    ) is None  # fmt: skip
