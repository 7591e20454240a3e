"""Who is let in, what a hostile peer gets, and how much it may make the receiver hold."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import pytest

from asys_bench.cluster import wire
from asys_bench.cluster.admission import Limits
from asys_bench.cluster.intake import SILENT_S, Intake
from asys_bench.cluster.ledger import Ledger
from asys_bench.cluster.wire import Message, Refusal
from tests.unit.cluster.delivery_world import ReceiverBus
from tests.unit.cluster.test_wire import HELLO

GOOD = dataclasses.replace(HELLO, names={1: "layer.0", 0: "identity"}, world=2, first_packet=0)
NS = 10**12


class Receiver:
    def __init__(self, folder: Path, limits: Limits | None = None, **more: Any) -> None:
        self.now = 0.0
        self.sent: list[tuple[bytes, bytes]] = []
        self.pushed: list[Any] = []
        self.ledger = Ledger(folder, 0)
        self.bus = ReceiverBus(self.pushed, 1 << 20)
        self.intake = Intake(
            self.ledger, self.bus, limits or Limits(window=1 << 16, memory=1 << 18, message=1 << 16),
            lambda peer, data: self.sent.append((peer, data)), clock=lambda: self.now, **more,
        )  # fmt: skip

    def say(self, peer: bytes, data: bytes | bytearray, clock_ns: int = NS) -> None:
        self.intake.receive(peer, memoryview(bytearray(data)), clock_ns)

    def hello(self, peer: bytes = b"a", hello: wire.Hello = GOOD, number: int = 1) -> None:
        self.say(peer, wire.as_json(Message.HELLO, number, hello))

    def last(self, peer: bytes = b"a") -> tuple[Message, memoryview]:
        data = memoryview([data for to, data in self.sent if to == peer][-1])
        return wire.head(data)[0], data

    def refusal(self, peer: bytes = b"a") -> Refusal:
        kind, data = self.last(peer)
        assert kind is Message.REFUSED, kind
        return wire.parse_refused(data)[0]


@pytest.fixture
def receiver(tmp_path: Path) -> Receiver:
    return Receiver(tmp_path)


def batch(
    number: int, seqs: list[int], nbytes: int = 64, source: int = 0, shard: int = 0, hook: int = 1,
    clock_ns: int = 1000, **wrong: Any,
) -> bytearray:  # fmt: skip
    from asys_bench.contracts.packet import PacketMeta, pack_header_into

    sizes = [128 + nbytes] * len(seqs)
    data = bytearray(wire.batch_bytes(sizes))
    entries, at = [], wire.table_end(len(seqs))
    for seq in seqs:
        meta = PacketMeta(hook, 0, 5, (nbytes,), host_step=seq, timestamp_ns=900)
        pack_header_into(data, at, meta, seq=seq, shard=shard, source=source, payload_bytes=nbytes)
        for offset, (form, value) in wrong.items():
            struct.pack_into(form, data, at + int(offset[1:]), value)
        entries.append((at, 128 + nbytes))
        at += wire.aligned(128 + nbytes)
    wire.write_batch_head(memoryview(data), number, clock_ns, entries)
    return data


def test_a_forwarder_is_welcomed_with_its_credit_and_its_packets_are_accepted(
    receiver: Receiver,
) -> None:
    receiver.hello()
    kind, data = receiver.last()
    assert kind is Message.WELCOME
    assert wire.parse(wire.Welcome, data).limit == 1 << 16
    receiver.say(b"a", batch(1, [0, 1, 2]))
    receiver.intake.answer()
    kind, data = receiver.last()
    ack = wire.parse_ack(wire.head(data)[1], data)
    assert (ack.batch, ack.accepted, ack.total, ack.duplicates) == (1, 3, 3, 0)
    assert [key for key, _ in receiver.pushed] == [(0, 0, 0), (0, 0, 1), (0, 0, 2)]


def test_times_are_those_of_this_nodes_clock_and_never_in_the_future(receiver: Receiver) -> None:
    stamps = []
    receiver.bus.push = lambda shard, data, places: stamps.extend(  # type: ignore[method-assign]
        struct.unpack_from("<Q", data, at + 24)[0] for at, _ in places.tolist()
    ) or len(places)  # fmt: skip
    receiver.hello()
    receiver.say(b"a", batch(1, [0]), clock_ns=NS)  # stamped 900, sent at 1000 there
    receiver.say(b"a", batch(2, [1], t24=("<Q", 5000)), clock_ns=NS + 50)
    assert stamps == [NS - 100, NS + 50]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Refusal.MALFORMED),
        (b"x" * 40, Refusal.MALFORMED),
        (wire.message(Message.BATCH, 1, b""), Refusal.MALFORMED),
        (wire.message(Message.WELCOME, 0, b"{}"), Refusal.MALFORMED),
        (batch(2, [0]), Refusal.REPLAY),
        (batch(0, [0]), Refusal.REPLAY),
        (batch(1, [0], source=9), Refusal.NAMES),
        (batch(1, [0], shard=9), Refusal.NAMES),
        (batch(1, [0], hook=99), Refusal.NAMES),
        (batch(1, [0], e56=("<H", 44)), Refusal.NAMES),
        (batch(1, [0], m0=("<I", 1)), Refusal.MALFORMED),
        (batch(1, [0], v4=("<H", 2)), Refusal.MALFORMED),
        (batch(1, [0], n40=("<Q", 1 << 50)), Refusal.MALFORMED),
        (batch(1, [0], k58=("<B", 99)), Refusal.MALFORMED),
        (batch(1, [0], d59=("<B", 99)), Refusal.MALFORMED),
        (batch(1, [0], d60=("<B", 9)), Refusal.MALFORMED),
        (batch(1, [0], s8=("<Q", 1 << 50)), Refusal.MALFORMED),
        (batch(1, [0], h16=("<Q", 1 << 63)), Refusal.MALFORMED),
        (batch(1, list(range(300)), 600), Refusal.TOO_LARGE),
        (wire.as_json(Message.HELLO, 2, GOOD), Refusal.REPLAY),
        (wire.query(1, [(9, 9, 0)]), Refusal.NAMES),
        (wire.as_json(Message.NAMES, 0, wire.Names({n: f"e{n}" for n in range(600)}, ())), Refusal.NAMES),
        (wire.as_json(Message.REPORT, 0, {"taken": -1}), Refusal.MALFORMED),
    ],
)  # fmt: skip
def test_what_a_welcomed_peer_must_not_send_is_refused_by_name_and_nothing_is_pushed(
    receiver: Receiver, data: bytes, reason: Refusal
) -> None:
    receiver.hello()
    receiver.say(b"a", data)
    assert receiver.refusal() is reason
    assert receiver.intake.refused == {reason: 1}
    assert receiver.pushed == []
    receiver.say(b"a", batch(1, [0]))  # nobody listens any more
    assert receiver.pushed == []
    assert not receiver.intake.connections


def test_a_batch_with_one_damaged_packet_is_refused_as_a_whole(receiver: Receiver) -> None:
    receiver.hello()
    data = batch(1, [0, 1, 2])
    at = wire.table_end(3) + 2 * wire.aligned(192)
    struct.pack_into("<B", data, at + 58, 77)
    receiver.say(b"a", data)
    assert receiver.refusal() is Refusal.MALFORMED
    assert receiver.pushed == []


def test_bytes_beyond_the_credit_are_refused(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, Limits(window=4096, memory=8192, message=1 << 16))
    receiver.hello()
    receiver.bus.in_ring.append(1 << 20)  # the ring is full: nothing is pushed, nothing granted
    receiver.say(b"a", batch(1, list(range(10))))
    assert receiver.intake.is_waiting
    receiver.say(b"a", batch(2, list(range(10, 24))))
    assert receiver.refusal() is Refusal.CREDIT


def test_all_connections_together_have_no_more_than_the_memory(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, Limits(window=4096, memory=10_000, message=4096, connections=5))
    for index in range(7):
        hello = dataclasses.replace(
            GOOD, run_id=f"run{index}", ranks=((0, 0),),
        )  # fmt: skip
        receiver.hello(b"%d" % index, hello)
        receiver.intake.answer()
        assert receiver.intake.outstanding <= 10_000
    assert len(receiver.intake.connections) == 5
    assert receiver.refusal(b"6") is Refusal.BUSY


def test_the_room_of_the_bus_is_asked_for_again_when_it_is_used_up(receiver: Receiver) -> None:
    """A forwarder of some of the hooks sends runs of one packet."""
    receiver.hello()
    room, asked = receiver.bus.room, []
    receiver.bus.room = lambda: asked.append(1) or room()  # type: ignore[method-assign, func-returns-value]
    receiver.say(b"a", batch(1, list(range(0, 40, 2))))
    assert len(receiver.pushed) == 20
    pushing = len(asked)
    receiver.bus.most = 1  # it takes less than it has room for, of runs of two: it is asked anew
    receiver.say(b"a", batch(2, [100, 101, 200, 201]))
    assert [seq for (*_, seq), _ in receiver.pushed[20:]] == [100, 101, 200, 201]
    assert pushing <= 2
    assert len(asked) - pushing >= 3


def test_one_turn_asks_the_bus_for_its_room_once_however_many_are_connected(
    tmp_path: Path,
) -> None:
    receiver = Receiver(tmp_path, Limits(window=4096, memory=10_000, message=4096, connections=5))
    for index in range(5):
        receiver.hello(b"%d" % index, dataclasses.replace(GOOD, run_id=f"run{index}"))
    receiver.say(b"0", batch(1, [0]))
    room, asked = receiver.bus.room, []
    receiver.bus.room = lambda: asked.append(1) or room()  # type: ignore[method-assign, func-returns-value]
    receiver.intake.answer()
    assert len(asked) == 1
    # The third takes 192 of the 256 bytes that are given back, up to a fifth of the memory.
    said = [receiver.intake.connections[b"%d" % index].limit for index in range(5)]
    assert said == [4096, 4096, 2000, 64, 0]
    assert receiver.intake.outstanding == 10_000


def test_another_job_other_hooks_and_more_ranks_than_shards_are_refused_by_name(
    tmp_path: Path,
) -> None:
    receiver = Receiver(tmp_path, hooks=("layer.*",))
    receiver.hello()
    other = dataclasses.replace(GOOD, job="another", run_id="r2")
    receiver.hello(b"b", other)
    assert receiver.refusal(b"b") is Refusal.JOB
    assert b"'job', not of 'another'" in receiver.last(b"b")[1].tobytes()
    strange = dataclasses.replace(GOOD, run_id="r2", streams=({"name": "head"},))
    receiver.hello(b"c", strange)
    assert receiver.refusal(b"c") is Refusal.HOOKS
    late = dataclasses.replace(GOOD, run_id="r2", streams=({"name": "layer.9"},))
    receiver.hello(b"d", late)
    assert receiver.refusal(b"d") is Refusal.HOOKS
    wide = dataclasses.replace(GOOD, run_id="r2", ranks=((5, 5),))
    receiver.hello(b"e", wide)
    assert receiver.refusal(b"e") is Refusal.FULL


def test_a_second_forwarder_of_a_run_with_the_same_hook_is_refused_and_its_tokens_are_skipped(
    receiver: Receiver,
) -> None:
    tokens = {"name": "tokens"}
    first = dataclasses.replace(
        GOOD, streams=(*GOOD.streams, {"name": "layer.1"}, tokens), side=("tokens",)
    )
    receiver.hello(b"a", dataclasses.replace(first, streams=({"name": "layer.0"}, tokens)))
    same = dataclasses.replace(GOOD, worker="other-0")
    receiver.hello(b"b", same)
    assert receiver.refusal(b"b") is Refusal.OVERLAP


def test_a_forwarder_that_connects_again_replaces_its_older_connection(receiver: Receiver) -> None:
    receiver.hello(b"a", number=1)
    receiver.say(b"a", batch(1, [0, 1]))
    receiver.hello(b"b", number=2)
    assert receiver.refusal(b"a") is Refusal.STALE
    assert receiver.last(b"b")[0] is Message.WELCOME
    receiver.say(b"a", batch(2, [2]))  # of the old one, late
    assert len(receiver.pushed) == 2
    receiver.hello(b"c", number=2)  # a replay of its HELLO
    assert receiver.refusal(b"c") is Refusal.STALE
    assert list(receiver.intake.connections) == [b"b"]


def test_a_silent_forwarder_is_let_go_and_its_credit_with_it(receiver: Receiver) -> None:
    receiver.hello()
    receiver.now = SILENT_S + 1
    receiver.intake.look()
    assert receiver.intake.outstanding == 0
    assert receiver.refusal() is Refusal.STALE


def test_when_the_receiver_was_late_itself_nobody_was_silent_meanwhile(receiver: Receiver) -> None:
    receiver.hello()
    receiver.now = SILENT_S + 1
    receiver.intake.excuse(SILENT_S)
    receiver.intake.look()
    assert receiver.intake.connections
    receiver.now += SILENT_S
    receiver.intake.look()
    assert receiver.refusal() is Refusal.STALE


def test_a_million_refused_peers_are_not_all_remembered(receiver: Receiver) -> None:
    for index in range(10_000):
        receiver.say(b"p%d" % index, b"x")
    assert len(receiver.intake._gone) <= 4096
    assert len(receiver.intake._gone_set) <= 4096
    assert receiver.intake.refused[Refusal.MALFORMED] == 10_000


def test_packets_of_a_later_run_of_the_same_rank_have_keys_of_their_own(receiver: Receiver) -> None:
    receiver.hello(b"a", dataclasses.replace(GOOD, first_packet=0, run_id="run"))
    receiver.say(b"a", batch(1, [0]))
    receiver.hello(b"b", dataclasses.replace(GOOD, run_id="again", first_packet=0))
    receiver.say(b"b", batch(1, [0]))
    receiver.hello(b"c", dataclasses.replace(GOOD, run_id="run", attempt=2, first_packet=50))
    receiver.say(b"c", batch(1, [0]))
    assert [key[2] for key, _ in receiver.pushed] == [0, 1 << 40, 50]


def test_an_answer_while_a_batch_is_half_on_the_bus_speaks_of_whole_batches_alone(
    receiver: Receiver,
) -> None:
    receiver.hello()
    receiver.bus.in_ring.append((1 << 20) - 500)  # room for two packets of 192 bytes
    receiver.say(b"a", batch(1, [0, 1, 2, 3]))
    assert len(receiver.pushed) == 2
    receiver.say(b"a", wire.as_json(Message.REPORT, 0, wire.Report()))
    receiver.intake.answer()
    kind, data = receiver.last()
    ack = wire.parse_ack(wire.head(data)[1], data)
    settled = ack.accepted + ack.duplicates + ack.expired + ack.unpushed
    assert (kind, ack.batch, settled, ack.total) == (Message.ACK, 0, 0, 2)
    receiver.bus.in_ring.clear()
    receiver.intake.push_waiting()
    receiver.intake.answer()
    data = receiver.last()[1]
    ack = wire.parse_ack(wire.head(data)[1], data)
    assert (ack.batch, ack.accepted, ack.total) == (1, 4, 4)


def test_a_forwarder_whose_time_is_over_leaves_with_batches_that_wait_for_room(
    receiver: Receiver,
) -> None:
    receiver.hello()
    receiver.bus.in_ring.append((1 << 20) - 500)  # room for two packets of 192 bytes
    receiver.say(b"a", batch(1, [0, 1, 2, 3]))
    last = wire.Report(taken=4, dropped={"closed": 4}, final=True)
    receiver.say(b"a", wire.as_json(Message.FIN, 0, last))
    assert receiver.last()[0] is Message.BYE
    assert (receiver.intake.connections, receiver.intake.refused) == ({}, {})
    ((told, _),) = receiver.intake.reports.values()
    assert told == last
    receiver.bus.in_ring.clear()
    assert receiver.intake.push_waiting()
    assert receiver.ledger.total().accepted == len(receiver.pushed) == 2


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "gradient"), ("rows", "channels"), ("select", 3), ("coin", "own")]
)
def test_a_hook_whose_rows_are_something_else_on_another_node_is_refused_with_both_named(
    receiver: Receiver, key: str, value: str | int
) -> None:
    mine = {"name": "layer.0", "module": "layers.0", "kind": "activation", "rows": "last",
            "select": None, "coin": "shared"}  # fmt: skip
    receiver.hello(b"a", dataclasses.replace(GOOD, streams=(mine,)))
    other = {**mine, key: value}
    receiver.hello(b"b", dataclasses.replace(GOOD, run_id="r2", streams=(other,)))
    assert receiver.refusal(b"b") is Refusal.HOOKS
    why = wire.parse_refused(receiver.last(b"b")[1])[1]
    assert f"layer.0 of {key} {mine[key]}" in why
    assert f"here it is {key} {value}" in why
    wrapped = {**mine, "module": "module.layers.0"}
    receiver.hello(b"c", dataclasses.replace(GOOD, run_id="r2", streams=(wrapped,)))
    assert receiver.last(b"c")[0] is Message.WELCOME


def test_a_receiver_that_goes_on_compares_with_what_its_run_began_with(tmp_path: Path) -> None:
    first = Receiver(tmp_path)
    first.hello()
    first.ledger.close()
    second = Receiver(tmp_path)
    second.hello(b"a", dataclasses.replace(GOOD, attempt=2))
    assert second.last(b"a")[0] is Message.WELCOME
    strange = ({"name": "layer.0", "kind": "gradient", "select": None},)
    second.hello(b"b", dataclasses.replace(GOOD, run_id="r2", streams=strange))
    assert second.refusal(b"b") is Refusal.HOOKS
