"""Readers in other processes: attached, killed, stopped, slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asys_bench.contracts.bus import (
    MAX_DELIVERIES,
    BaseDataBus,
    BusError,
    BusProducer,
    BusSubscription,
    Delivery,
    GroupSpec,
)

from .processes import Nursery, Remote, end_script, start_script
from .support import (
    PATIENCE_S,
    Buses,
    body_of,
    drain,
    eventually,
    meta_of,
    pull_numbers,
    pull_some,
    push_numbers,
    settled,
)

IN_TIME_NAMESPACE = Path(__file__).parents[1] / "fixtures/in_time_namespace.py"
TRAIN = GroupSpec("train")
ARCHIVE = GroupSpec("archive", Delivery.AT_LEAST_ONCE)


def test_a_consumer_in_another_process_reads_everything(
    shared_bus: Buses, nursery: Nursery
) -> None:
    bus = shared_bus(TRAIN)
    far = nursery.child().attach(bus.handle(), "train")
    push_numbers(bus.producer(), 0, 100, 3000)
    bus.finish()
    assert far.call("drain", timeout_s=PATIENCE_S) == list(range(100))
    settled(bus, "train", delivered=100)
    eventually(lambda: far.call("account")["groups"]["train"][0] == 100, "its account")
    assert far.call("name_of", name_id=1) == "layer.a"


def test_a_handle_travels_as_json_and_descriptors_to_a_spawned_process(shared_bus: Buses) -> None:
    bus = shared_bus(TRAIN)
    handle = bus.handle()
    assert json.loads(json.dumps(handle.to_dict())) == handle.to_dict()
    process, control = start_script("obey")
    try:
        remote = Remote(control, process.pid)
        remote.attach(handle, "train")
        push_numbers(bus.producer(), 0, 5)
        assert remote.call("pull", most=8, timeout_s=PATIENCE_S)
        assert remote.call("release") >= 1
    finally:
        end_script(process)
        remote.end()


def test_a_reader_on_another_clock_takes_nobody_for_dead_and_is_not_taken_for_dead(
    shared_bus: Buses,
) -> None:
    in_three_days = [sys.executable, str(IN_TIME_NAMESPACE), str(3 * 86400)]
    if subprocess.run([*in_three_days, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no time namespace is to be had here: root, and Linux 6.3 or later")
    bus = shared_bus(ARCHIVE)
    producer = bus.producer()
    push_numbers(producer, 0, 20)
    process, control = start_script("obey", in_three_days)
    try:
        far = Remote(control, process.pid)
        far.attach(bus.handle(), "archive")
        held = far.call("pull", most=8, timeout_s=PATIENCE_S)
        with bus.subscribe("archive", "near") as near:  # looks for dead members when it joins
            assert len(held) + len(pull_numbers(near, 20 - len(held))) == 20
            time.sleep(0.15)  # and when nothing has come for a while
            assert not near.pull_batch(8, 0.1).release()
        assert far.call("release") == len(held), "a lease that is taken from a live reader fails"
        push_numbers(producer, 20, 5)
        assert far.call("pull", most=8, timeout_s=PATIENCE_S), "its owner, the host, lives"
        far.call("release")
        settled(bus, "archive", redelivered=0, lost_in_flight=0)
    finally:
        end_script(process)
        far.end()


def test_a_name_interned_later_is_known_before_its_first_packet(
    shared_bus: Buses, nursery: Nursery
) -> None:
    bus = shared_bus(TRAIN)
    far = nursery.child().attach(bus.handle(), "train")
    name_id = bus.intern("born.later")
    push_numbers(bus.producer(), 0, 1, hook_id=name_id)
    assert far.call("pull", most=1, timeout_s=PATIENCE_S) == [0]
    assert far.call("name_of", name_id=name_id) == "born.later"


def test_a_consumer_killed_while_holding_a_claim_loses_nothing_at_least_once(
    killable_bus: Buses, nursery: Nursery
) -> None:
    bus = killable_bus(ARCHIVE)
    push_numbers(bus.producer(), 0, 20)
    victim = nursery.child().attach(bus.handle(), "archive")
    claimed = victim.call("pull", most=8, timeout_s=PATIENCE_S)
    assert claimed
    bus.reap(victim.kill())
    with bus.subscribe("archive", "heir") as heir:
        assert sorted(pull_numbers(heir, 20)) == list(range(20))
        settled(bus, "archive", delivered=20, lost_in_flight=0, redelivered=len(claimed), ready=0)


def test_a_consumer_killed_while_holding_a_claim_is_counted_lost_at_most_once(
    killable_bus: Buses, nursery: Nursery
) -> None:
    bus = killable_bus(TRAIN)
    push_numbers(bus.producer(), 0, 20)
    victim = nursery.child().attach(bus.handle(), "train")
    claimed = victim.call("pull", most=8, timeout_s=PATIENCE_S)
    bus.reap(victim.kill())
    settled(bus, "train", lost_in_flight=len(claimed), ready=20 - len(claimed))
    with bus.subscribe("train", "heir") as heir:
        rest = pull_numbers(heir, 20 - len(claimed))
    assert rest == [number for number in range(20) if number not in claimed]
    settled(bus, "train", delivered=len(rest), lost_in_flight=len(claimed))


@pytest.mark.rest
def test_consumers_killed_at_any_moment_lose_at_most_a_batch_each(
    killable_bus: Buses, nursery: Nursery
) -> None:
    bus = killable_bus(TRAIN, ARCHIVE, packets=512)
    producer = bus.producer()
    pushed, kills, batch = 0, 6, 16
    for turn in range(kills):
        victims = [nursery.child().attach(bus.handle(), group) for group in ("train", "archive")]
        for victim in victims:
            victim.start("drain", timeout_s=PATIENCE_S)
        for _ in range(40):
            push_numbers(producer, pushed, 1, 5000)
            pushed += 1
        time.sleep(0.002 * turn)
        for victim in victims:
            bus.reap(victim.kill())
    with bus.subscribe("archive", "heir") as archive, bus.subscribe("train", "heir") as train:
        bus.finish()
        drain(archive)
        drain(train)
        eventually(lambda: not any(g.ready for g in bus.account().groups), "an empty bus")
    account = bus.account()
    assert account.produced == pushed
    assert account.group("archive").lost_in_flight == 0
    assert account.group("archive").delivered == pushed
    assert account.group("train").lost_in_flight <= kills * batch
    settled(bus, "train", dead_lettered=0)


def test_a_packet_that_kills_its_readers_is_dead_lettered(
    killable_bus: Buses, nursery: Nursery
) -> None:
    bus = killable_bus(ARCHIVE)
    push_numbers(bus.producer(), 0, 1)
    for turn in range(MAX_DELIVERIES):
        settled(bus, "archive", ready=1, dead_lettered=0)
        victim = nursery.child().attach(bus.handle(), "archive", f"victim{turn}")
        assert victim.call("pull", most=4, timeout_s=PATIENCE_S) == [0]
        bus.reap(victim.kill())
    settled(bus, "archive", ready=0, dead_lettered=1)


def test_a_stopped_member_does_not_block_the_others(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(TRAIN, ARCHIVE)
    stopped = nursery.child().attach(bus.handle(), "train", "stopped")
    assert stopped.call("pull", most=4, timeout_s=0.0) == []
    stopped.signal(signal.SIGSTOP)
    push_numbers(bus.producer(), 0, 40)
    with bus.subscribe("train", "awake") as train, bus.subscribe("archive", "awake") as archive:
        assert pull_numbers(train, 40) == list(range(40))
        assert pull_numbers(archive, 40) == list(range(40))


def test_a_late_reader_that_stands_still_holds_up_the_others_for_a_second_and_no_longer(
    killable_bus: Buses, nursery: Nursery
) -> None:
    bus = killable_bus(TRAIN, packets=64)
    producer = bus.producer()
    late = nursery.child().attach(bus.handle())
    late.call("subscribe", group="reader-0", member="late", late=True)
    push_numbers(producer, 0, 4)
    held = late.call("pull", most=2, timeout_s=PATIENCE_S)
    late.signal(signal.SIGSTOP)
    offered = refused = row = 0
    deadline = time.monotonic() + PATIENCE_S
    with bus.subscribe("train", "near") as train:
        while row < 500:  # more than fit: the bus takes packets again
            assert time.monotonic() < deadline, f"still full after {refused} refusals"
            accepted = producer.try_push(meta_of(offered, 64), body_of(offered, 64))
            offered, refused = offered + 1, refused + (not accepted)
            row = row + 1 if accepted and refused else 0
            train.pull_batch(64, 0.0 if accepted else 0.01).release()
        assert refused, "it was full at first, because of the reader"
        account = bus.account()
        assert account.group("train").lost_in_flight == 0
        assert not any(account.imbalance(group) for group in account.groups)
        eventually(lambda: bus.account().group("reader-0").lost_in_flight == len(held), "its loss")

        late.signal(signal.SIGCONT)
        if not late.call("ended"):  # else its channel was closed, and it has to join again
            assert late.call("release") == 0, "what it holds may be torn by now"
        else:
            late.attach(bus.handle())
            late.call("subscribe", group="reader-0", member="late", late=True)
        news: list[int] = []
        while not news:
            assert time.monotonic() < deadline, "it reads nothing any more"
            producer.try_push(meta_of(offered, 64), body_of(offered, 64))
            offered += 1
            train.pull_batch(64, 0.0).release()
            news = late.call("pull", most=8, timeout_s=0.06)
            late.call("release")
    assert min(news) > max(held)


def test_a_stopped_member_that_is_killed_gives_its_claim_back(
    killable_bus: Buses, nursery: Nursery
) -> None:
    bus = killable_bus(ARCHIVE)
    push_numbers(bus.producer(), 0, 10)
    stopped = nursery.child().attach(bus.handle(), "archive", "stopped")
    assert stopped.call("pull", most=4, timeout_s=PATIENCE_S)
    stopped.signal(signal.SIGSTOP)
    bus.reap(stopped.kill())
    with bus.subscribe("archive", "heir") as heir:
        assert sorted(pull_numbers(heir, 10)) == list(range(10))


def test_a_slow_consumer_makes_drops_that_are_counted(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(TRAIN, packets=16)
    slow = nursery.child().attach(bus.handle(), "train", "slow")
    producer = bus.producer()
    offered = accepted = 0
    for turn in range(5):
        for _ in range(40):
            accepted += producer.try_push(meta_of(offered, 64), body_of(offered, 64))
            offered += 1
        assert slow.call("pull", most=4, timeout_s=PATIENCE_S), turn
        slow.call("release")
    account = bus.account()
    assert account.produced == offered
    assert account.dropped["full"] == offered - accepted > 0
    bus.finish()
    slow.call("drain", timeout_s=PATIENCE_S)
    settled(bus, "train", delivered=accepted, ready=0)


def test_an_idle_consumer_uses_almost_no_cpu(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(TRAIN)
    idle = nursery.child().attach(bus.handle(), "train", "idle")
    assert idle.call("idle_cpu_s", duration_s=1.0) < 0.25


def test_a_waiting_consumer_wakes_for_a_packet(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(TRAIN)
    far = nursery.child().attach(bus.handle(), "train")
    producer = bus.producer()
    for number in range(5):
        far.start("pull", most=4, timeout_s=1.5 * PATIENCE_S)
        time.sleep(0.05)
        started = time.monotonic()
        push_numbers(producer, number, 1)
        assert far.result() == [number]
        assert time.monotonic() - started < PATIENCE_S, "it slept through the packet"
        far.call("release")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_a_forked_child_is_refused(make_bus: Buses) -> None:
    bus = make_bus(TRAIN)
    producer = bus.producer()
    push_numbers(producer, 0, 1)
    with bus.subscribe("train", "parent") as reader:
        pid = os.fork()
        if pid == 0:
            os._exit(_count_refusals(bus, producer, reader))
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 3, "the child could use its parent's bus"
        push_numbers(producer, 1, 1)
        assert pull_numbers(reader, 2) == [0, 1], "the fork disturbed the parent"
        settled(bus, "train", delivered=2)


def _count_refusals(bus: BaseDataBus, producer: BusProducer, reader: BusSubscription) -> int:
    refusals = 0
    for attempt in (
        lambda: producer.try_push(meta_of(9, 4), b"fork"),
        lambda: reader.pull_batch(1, 0.0),
        lambda: bus.subscribe("train", "child"),
    ):
        try:
            attempt()
        except BusError:
            refusals += 1
        except BaseException:  # noqa: BLE001 - anything else is a wrong answer
            return 100
    return refusals


def test_a_lease_is_not_handed_to_two_living_members(shared_bus: Buses, nursery: Nursery) -> None:
    bus = shared_bus(ARCHIVE)
    push_numbers(bus.producer(), 0, 10)
    far = nursery.child().attach(bus.handle(), "archive")
    theirs = far.call("pull", most=5, timeout_s=PATIENCE_S)
    with bus.subscribe("archive", "near") as near, pull_some(near) as lease:
        ours = [packet.host_step for packet in lease]
        assert not set(ours) & set(theirs)
    assert far.call("release") == len(theirs)


@pytest.mark.parametrize("delivery", list(Delivery))
def test_a_restarted_member_goes_on_under_its_name(
    killable_bus: Buses, nursery: Nursery, delivery: Delivery
) -> None:
    bus = killable_bus(GroupSpec("group", delivery))
    push_numbers(bus.producer(), 0, 10)
    first = nursery.child().attach(bus.handle(), "group", "worker-0")
    first.call("pull", most=2, timeout_s=PATIENCE_S)
    first.call("release")
    bus.reap(first.kill())
    second = nursery.child().attach(bus.handle(), "group", "worker-0")
    bus.finish()
    assert second.call("drain", timeout_s=PATIENCE_S) == list(range(2, 10))
    settled(bus, "group", delivered=10)
