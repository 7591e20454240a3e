"""Forwarder and receiver over a real socket: what arrives, what is counted, who is let in."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asys_bench.cluster.keys import make_keys
from asys_bench.cluster.router import Router, RouterError
from asys_bench.contracts.host import HostError
from tests.conformance.support import eventually
from tests.unit.cluster.loopback import Origin, Receiver

Start = Callable[..., Any]


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Start]:
    made: list[Origin] = []

    def start(**options: Any) -> Origin:
        made.append(Origin(tmp_path / f"run{len(made)}", **options))
        return made[-1]

    yield start
    for one in made:
        one.release()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Start]:
    made: list[Receiver] = []

    def start(folder: str = "recv", **options: Any) -> Receiver:
        made.append(Receiver(tmp_path / folder, **options))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def test_packets_arrive_with_their_own_keys_in_order_and_the_two_accounts_agree(
    origin: Start, receiver: Start
) -> None:
    there = receiver()
    here = origin(to=there.address, shards=2)
    here.push(20, shard=0, hook=0)
    here.push(20, shard=1, hook=1)
    here.pump_until(lambda: here.counters().get("remote_acked") == 40, "40 answers")
    packets = there.read_all(40)
    assert [(p.source, p.shard, p.seq) for p in packets if p.shard == 0] == [
        (0, 0, n) for n in range(20)
    ]
    assert [(p.source, p.shard, p.seq) for p in packets if p.shard == 1] == [
        (0, 1, n) for n in range(20)
    ]
    assert all(bytes(p.payload) == bytes([p.host_step & 0xFF]) * 256 for p in packets)
    now = time.monotonic_ns()
    assert all(now - 60e9 < p.timestamp_ns <= now for p in packets)
    here.close()
    counters = here.counters()
    assert counters["remote_taken"] == counters["remote_acked"] == 40
    there.clock.should_stop = True
    there._thread.join(60)
    account = there.account
    assert (account["accepted"], account["duplicates"], account["final"]) == (40, 0, True)
    (sender,) = account["senders"]
    assert (sender["accepted"], sender["window"]) == (40, 0)
    assert sender["reported"]["acked"] == 40
    assert sender["reported"]["final"] is True
    assert there.clock.steps_made == 39


def test_with_keys_an_allowed_client_comes_in_and_another_is_refused_by_name(
    tmp_path: Path, origin: Start, receiver: Start
) -> None:
    make_keys(tmp_path / "keys", ["client", "stranger"])
    (tmp_path / "keys/allowed/stranger.public").unlink()
    there = receiver(keys=tmp_path / "keys")
    here = origin(to=there.address, keys=tmp_path / "keys")
    here.push(3)
    here.pump_until(lambda: here.counters().get("remote_acked") == 3, "answers")
    assert len(there.read_all(3)) == 3
    other = origin(to=there.address, keys=tmp_path / "keys", client="stranger", wait_s=0.2)
    other.push(2)
    refused = "remote_refused{reason=key}"
    other.pump_until(lambda: bool(other.counters().get(refused)), "a refusal")
    other.pump_until(
        lambda: other.counters().get("remote_dropped{reason=unreachable}") == 2, "drops"
    )
    other.close(1.0)
    here.close()


def test_a_forwarder_with_the_key_of_another_receiver_sends_nothing(
    tmp_path: Path, origin: Start, receiver: Start
) -> None:
    make_keys(tmp_path / "keys")
    make_keys(tmp_path / "other")
    there = receiver(keys=tmp_path / "keys")
    wrong = (tmp_path / "other/receiver.public").read_text().strip()
    here = origin(
        to=there.address,
        keys=tmp_path / "keys",
        receiver_key=wrong,
        wait_s=0.2,
        connect_timeout_s=0.5,
    )
    here.push(2)
    here.pump_until(lambda: here.counters().get("remote_dropped{reason=unreachable}") == 2, "drops")
    here.close(1.0)
    assert there.account["accepted"] == 0


def test_without_a_receiver_packets_are_dropped_and_counted_and_the_bus_goes_on(
    origin: Start,
) -> None:
    with socket.socket() as free:  # bound, so that nobody else takes it, and nobody listens
        free.bind(("127.0.0.1", 0))
        to = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        here = origin(to=to, wait_s=0.1, hold_s=0.05, backoff_max_s=0.2)
        here.push(50)
        here.pump_until(
            lambda: here.counters().get("remote_dropped{reason=unreachable}") == 50, "drops"
        )
        here.pump_until(lambda: here.counters()["remote_connections"] > 2, "further tries")
    here.close(1.0)
    account = here.bus.account()
    assert account.group("remote").delivered == 50
    assert account.dropped_total == 0


def test_while_a_receiver_starts_its_workers_nothing_is_dropped_and_nobody_is_silent(
    origin: Start, receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asys_bench.cluster.intake.SILENT_S", 1.5)
    there = receiver()
    feed = there.clock.feed

    def slowly(told: Any) -> Any:
        time.sleep(4.0)
        return feed(told)

    there.clock.feed = slowly
    here = origin(to=there.address, wait_s=0.1)
    here.push(20)
    here.pump_until(lambda: here.counters().get("remote_acked") == 20, "answers")
    assert here.counters()["remote_connections"] == 1
    here.close(1.0)


def test_a_forwarder_finds_its_receiver_in_the_book_and_the_one_that_comes_after_it(
    tmp_path: Path, origin: Start, receiver: Start
) -> None:
    book = str(tmp_path / "book")
    here = origin(book=book, wait_s=30, backoff_max_s=0.2)
    here.push(5)
    here.pump()
    first = receiver("a", name="r", book=book)
    here.pump_until(lambda: here.counters().get("remote_acked") == 5, "answers")
    first.read_all(5)
    first.clock.should_stop = True
    first._thread.join(60)
    second = receiver("b", name="r", book=book)
    here.push(4)
    here.pump_until(lambda: here.counters().get("remote_acked") == 9, "answers of the second")
    second.read_all(4)
    here.close()
    assert here.counters()["remote_taken"] == 9


def test_a_receiver_that_comes_back_in_its_folder_goes_on_with_its_ledger(
    tmp_path: Path, origin: Start, receiver: Start
) -> None:
    first = receiver("r")
    port = first.address.rpartition(":")[2]
    here = origin(to=first.address, wait_s=60, backoff_max_s=0.2)
    here.push(10)
    here.pump_until(lambda: here.counters().get("remote_acked") == 10, "answers")
    first.read_all(10)
    first.stop()
    here.push(10)
    here.pump()
    second = Receiver(tmp_path / "r", listen=f"127.0.0.1:{port}")
    here.pump_until(lambda: here.counters().get("remote_acked") == 20, "answers")
    packets = second.read_all(10)
    assert [p.seq for p in packets] == list(range(10, 20))
    here.close()
    second.stop()
    assert second.account["accepted"] == 20
    assert second.account["duplicates"] == 0
    first.stop = lambda: None  # type: ignore[method-assign]


def test_a_killed_forwarder_loses_nothing_that_had_no_answer(
    origin: Start, receiver: Start
) -> None:
    there = receiver(bus={"capacity_bytes": 1 << 20})
    here = origin(to=there.address, hold_s=30)
    here.push(400, nbytes=4096)  # more than the receiver's bus holds
    for _ in range(20):
        here.pump()
    here.kill()
    here.start()
    got = []

    def all_there() -> bool:
        got.extend(there.read(256, 0.0))
        return len(got) == 400

    here.pump_until(all_there, "every packet")
    here.close()
    counters = here.counters()
    assert sorted(p.seq for p in got) == list(range(400))
    assert counters["remote_taken"] == counters["remote_acked"] == 400


@pytest.mark.parametrize(
    ("policy", "batch_mib"), [("sample", 0.1), ("sample", 0.5), ("sample", 1), ("drop", 0.5)]
)
def test_a_slow_receiver_stops_the_pull_under_sample_and_drops_under_drop(
    origin: Start, receiver: Start, policy: str, batch_mib: float
) -> None:
    """Nobody reads the receiver's bus, which has room for a fifth of the packets."""
    there = receiver(bus={"capacity_bytes": 1 << 20}, window_mib=1, max_message_mib=1)
    here = origin(
        to=there.address, on_slow=policy, max_mib_in_flight=1, batch_mib=batch_mib, hold_s=0
    )
    here.push(1000, nbytes=5000)
    slow = "remote_dropped{reason=slow}"
    if policy == "sample":
        here.pump_until(lambda: here.counters().get("remote_acked", 0) > 50, "the first answers")
        here.pump_until(lambda: not here.worker.wants_packets, "a full outbox")
        assert here.counters()["remote_taken"] < 700
    else:
        here.pump_until(lambda: here.counters().get("remote_taken") == 1000, "the bus is let go")
    assert bool(here.counters().get(slow)) is (policy == "drop")
    here.close(0.5)
    counters = here.counters()
    dropped = sum(n for name, n in counters.items() if name.startswith("remote_dropped"))
    assert counters["remote_taken"] == counters["remote_acked"] + dropped
    assert counters["remote_connections"] == 1
    assert not [name for name in counters if name.startswith("remote_refused")]


def test_a_window_that_is_smaller_than_a_batch_takes_batches_of_several_packets(
    origin: Start, receiver: Start
) -> None:
    there = receiver(window_mib=1 / 16)
    here = origin(to=there.address, batch_mib=1 / 16)
    here.push(
        200, nbytes=4096 - 128
    )  # sixteen fill a batch, and with the table a window is too small
    here.pump_until(lambda: here.counters().get("remote_acked") == 200, "answers")
    assert [p.seq for p in there.read_all(200)] == list(range(200))
    connection = here.worker._connector._connection
    assert connection is not None
    assert connection.session.answers <= 40
    here.close()


@pytest.mark.parametrize(
    "backend", [pytest.param("numba_ring", marks=pytest.mark.rest), "mp_queue"]
)
def test_every_bus_lets_a_forwarder_hold_several_leases(
    origin: Start, receiver: Start, backend: str
) -> None:
    there = receiver()
    here = origin(to=there.address, backend=backend, hold_s=30)
    for _ in range(5):
        here.push(10)
        here.pump()
    here.pump_until(lambda: here.counters().get("remote_acked") == 50, "answers")
    assert [p.seq for p in there.read_all(50)] == list(range(50))
    here.close()


def test_a_receiver_whose_lifeline_is_cut_answers_writes_and_leaves(
    origin: Start, receiver: Start
) -> None:
    mine, theirs = os.pipe()
    there = receiver(lifeline_fd=mine)
    here = origin(to=there.address, wait_s=0.2)
    here.push(5)
    here.pump_until(lambda: here.counters().get("remote_acked") == 5, "answers")
    os.close(theirs)
    there._thread.join(60)
    assert there.result is not None
    assert there.result.stopped_early
    assert there.account["final"] is True
    assert there.account["accepted"] == 5
    here.push(1)
    here.pump_until(
        lambda: here.counters().get("remote_dropped{reason=unreachable}") == 1, "a drop"
    )
    here.close(1.0)
    os.close(mine)


def test_a_receiver_without_forwarders_for_its_ttl_ends_by_itself(receiver: Start) -> None:
    there = receiver(idle_ttl_s=0.3)
    there._thread.join(60)
    assert there.result is not None
    assert not there.result.stopped_early
    assert there.account["final"] is True


def test_a_receiver_that_cannot_give_its_memory_back_says_so_a_few_times_not_each_turn(
    receiver: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Router, "memory_used", lambda router: 2.0)
    there = receiver(memory_mib=8, window_mib=1, max_message_mib=1)
    eventually(lambda: "(4 times so far)" in caplog.text, "four turns")
    there.clock.should_stop = True
    there._thread.join(60)
    times = there.account["refused"]["memory"]
    told = [line for line in caplog.messages if "memory_mib is taken" in line]
    assert len(told) == times.bit_length()


def test_a_receiver_whose_address_somebody_else_has_taken_says_so_and_leaves_its_account(
    receiver: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(router: Router) -> None:
        raise RouterError("cannot listen at 127.0.0.1:7400: Address already in use")

    monkeypatch.setattr(Router, "memory_used", lambda router: 2.0)
    monkeypatch.setattr(Router, "reset", taken)
    there = receiver(memory_mib=8, window_mib=1, max_message_mib=1)
    there._thread.join(60)
    failure, there.failure = there.failure, None
    assert isinstance(failure, HostError)
    assert "host.options.receiver: cannot listen at 127.0.0.1:7400" in str(failure)
    assert there.account["final"] is True
