"""Messages: what is written is read again, and whatever else comes is refused by name."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.cluster import wire
from asys_bench.cluster.wire import Message, Refusal, WireError

HELLO = wire.Hello(
    job="job", run_id="run", attempt=1, worker="remote-0", node="n1", ranks=((0, 0), (1, 1)),
    names={0: "identity", 7: "layer.0"}, streams=({"name": "layer.0", "kind": "activation", "select": None},),
    side=(), step_unit="batch", first_packet=3, world=16,
)  # fmt: skip


def read(data: bytes) -> memoryview:
    return memoryview(bytearray(data))


def test_a_hello_is_read_as_it_was_written() -> None:
    data = read(wire.as_json(Message.HELLO, 3, HELLO))
    assert wire.head(data) == (Message.HELLO, 3)
    assert wire.parse(wire.Hello, data) == HELLO


def test_welcome_report_and_refusal_are_read_as_they_were_written() -> None:
    welcome = wire.Welcome("r", "id", 7, 1 << 20, 1 << 19, 99, ("tokens",))
    assert wire.parse(wire.Welcome, read(wire.as_json(Message.WELCOME, 0, welcome))) == welcome
    report = wire.Report(9, 5, 1, {"slow": 3}, True)
    assert wire.parse(wire.Report, read(wire.as_json(Message.FIN, 0, report))) == report
    told = wire.parse_refused(read(wire.refused(Refusal.JOB, "another job")))
    assert told == (Refusal.JOB, "another job")


def test_an_answer_and_a_question_are_read_as_they_were_written() -> None:
    ack = wire.Ack(4, 100, 90, 5, 3, 2, 1 << 30)
    data = read(wire.ack(ack))
    assert wire.parse_ack(wire.head(data)[1], data) == ack
    keys = [(0, 0, 5), (1, 1, (1 << 40) - 1)]
    assert wire.parse_query(read(wire.query(2, keys))) == keys
    answers = [True, False, True] * 7
    assert wire.parse_known(read(wire.known(2, answers)), 21) == answers


def batch(sizes: list[int]) -> bytearray:
    data = bytearray(wire.batch_bytes(sizes))
    entries, at = [], wire.table_end(len(sizes))
    for size in sizes:
        entries.append((at, size))
        at += wire.aligned(size)
    wire.write_batch_head(memoryview(data), 6, 77, entries)
    return data


@given(st.lists(st.integers(128, 5000), min_size=1, max_size=40))
def test_a_batch_is_read_as_it_was_written(sizes: list[int]) -> None:
    clock, entries = wire.parse_batch(memoryview(batch(sizes)), 128)
    assert clock == 77
    assert [length for _, length in entries] == sizes
    assert all(at % 64 == 0 for at, _ in entries)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_batch_is_refused_or_lies_inside_its_message(data: st.DataObject) -> None:
    message = batch([200, 128, 700])
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, wire.table_end(3) - 1))] = data.draw(st.integers(0, 255))
    message = message[: data.draw(st.integers(0, len(message)))]
    entries: list[tuple[int, int]] = []
    with suppress(WireError):
        _, entries = wire.parse_batch(memoryview(message), 128)
    assert all(length >= 128 and at + length <= len(message) for at, length in entries)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for look in (
        wire.head, wire.read_json, wire.parse_query, lambda view: wire.parse_ack(0, view),
        lambda view: wire.parse_batch(view, 128), lambda view: wire.parse(wire.Hello, view),
        lambda view: wire.parse_known(view, 9), wire.parse_refused,
    ):  # fmt: skip
        with suppress(WireError):
            look(memoryview(data))


WRONG = {
    "job": [None, 5, "x" * 600, "a\0b"],
    "attempt": [-1, 1.5, True, 1 << 64, "1"],
    "ranks": [[[0]], [[0, 1 << 20]], [[-1, 0]], [[0, 0], [0, 0]], "x", [[0, 0]] * 5000],
    "names": [[], {"x": "a"}, {"99999999": "a"}, {"1": 5}, {"1": "x" * 300}],
    "streams": [{}, [1], [{}], [{"name": 5}], [{"name": "a", "evil": 1}], [{"name": "a"}, {"name": "a"}],
                [{"name": ""}]],
    "side": ["x", [1]],
    "first_packet": [-5, None],
    "world": [-5, None],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_hello_with_a_wrong_field_is_refused(name: str, value: object) -> None:
    document = json.loads(json.dumps(dataclasses.asdict(HELLO))) | {name: value}
    with pytest.raises(WireError):
        wire.parse(wire.Hello, read(wire.as_json(Message.HELLO, 1, document)))


def test_a_field_too_many_or_too_few_is_refused() -> None:
    document = json.loads(json.dumps(dataclasses.asdict(HELLO)))
    for changed in (document | {"more": 1}, {k: v for k, v in document.items() if k != "job"}):
        with pytest.raises(WireError, match="Hello"):
            wire.parse(wire.Hello, read(wire.as_json(Message.HELLO, 1, changed)))


def test_deep_and_large_json_is_refused() -> None:
    deep = b"[" * 100_000
    with pytest.raises(WireError):
        wire.read_json(read(wire.message(Message.NAMES, 0, deep)))
    with pytest.raises(WireError) as error:
        wire.read_json(read(wire.message(Message.NAMES, 0, b"x" * (wire.MAX_JSON_BYTES + 1))))
    assert error.value.reason is Refusal.TOO_LARGE


def test_another_protocol_is_told_apart_from_nonsense() -> None:
    data = bytearray(wire.message(Message.HELLO))
    data[4] = 9
    with pytest.raises(WireError, match="protocol 9, here 1") as error:
        wire.head(memoryview(data))
    assert error.value.reason is Refusal.PROTOCOL
