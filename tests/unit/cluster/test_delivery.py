"""Every packet once, or counted: a forwarder and a receiver under kills, resets and delays in any order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from asys_bench.cluster.outbox import Dropped
from tests.unit.cluster.delivery_world import MOST, World

LENGTH = 60
"""Rules of an example at most; Hypothesis makes some shorter, the first few above all."""


class Delivery(RuleBasedStateMachine):
    rules_run = 0
    """In all examples of this process; what no rule has failed in."""

    @initialize(window=st.sampled_from([2 * MOST, MOST // 4, MOST // 5]))
    def begin(self, window: int) -> None:
        """Windows of several batches, of one, and of less than one."""
        self.folder = Path(tempfile.mkdtemp(prefix="asys-delivery-"))
        self.world = World(self.folder, window=window)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.settle()
            self.world.check_quiet()
            self.world.ledger.close()
        finally:
            shutil.rmtree(self.folder)

    @rule(
        stream=st.integers(0, 1), count=st.integers(1, 12), nbytes=st.sampled_from([1, 60, 700, 3000]),
        hook=st.sampled_from([1, 2]), encoding=st.sampled_from([0, 3]),
    )  # fmt: skip
    def produce(self, stream: int, count: int, nbytes: int, hook: int, encoding: int) -> None:
        for _ in range(count):
            self.world.produce(self.world.streams[stream], nbytes, hook, encoding)

    @rule(most=st.integers(1, 12))
    def pull(self, most: int) -> None:
        self.world.pull(most)

    @rule()
    def connect(self) -> None:
        self.world.connect()

    @rule(count=st.integers(1, 6))
    def messages_reach_the_receiver(self, count: int) -> None:
        self.world.send()
        for _ in range(count):
            self.world.take()

    @rule(count=st.integers(1, 6))
    def messages_reach_the_forwarder(self, count: int) -> None:
        self.world.answer()
        for _ in range(count):
            self.world.hear()

    @rule(count=st.integers(1, 6))
    def the_receivers_workers_read(self, count: int) -> None:
        self.world.read(count)

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.5, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule()
    def the_connection_is_reset(self) -> None:
        self.world.reset()

    @rule()
    def the_forwarder_gives_the_connection_up(self) -> None:
        self.world.lose_connection()

    @rule()
    def counters_are_published(self) -> None:
        self.world.publish()

    @rule()
    def the_forwarder_reports(self) -> None:
        self.world.report()

    @rule()
    def the_forwarder_is_killed(self) -> None:
        self.world.kill_forwarder()

    @rule()
    def the_receiver_is_killed(self) -> None:
        self.world.kill_receiver()

    @rule(
        when=st.sampled_from(
            ["before", "within", "after", "before unknown", "within unknown", "after unknown", None]
        )
    )  # fmt: skip
    def the_receiver_will_die_in_a_push(self, when: str | None) -> None:
        self.world.bus.die = when

    @rule(most=st.sampled_from([1, 3, 1 << 30]))
    def the_receivers_ring_takes_so_many_at_once(self, most: int) -> None:
        self.world.bus.most = most

    @invariant()
    def everything_holds(self) -> None:
        """Called after each rule, the first one included."""
        if hasattr(self, "world"):
            self.world.check()
            Delivery.rules_run += 1


def run(examples: int) -> int:
    """Rules that were run."""
    before = Delivery.rules_run
    run_state_machine_as_test(
        Delivery,
        settings=settings(
            max_examples=examples,
            stateful_step_count=LENGTH,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Delivery.rules_run - before


@pytest.mark.rest
@pytest.mark.timeout(600)
def test_every_packet_is_on_the_receivers_bus_once_or_counted_whatever_dies() -> None:
    assert run(25) > 500


@pytest.mark.timeout(3600)
@pytest.mark.soak("minutes")
def test_a_hundred_thousand_steps_of_delivery_lose_nothing_uncounted() -> None:
    found = run(2000)
    print(f"{found:,} steps of ledger and credits in one run")
    assert found >= 100_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_ten_packets_arrive_in_order_and_are_acknowledged(world: World) -> None:
    for _ in range(10):
        world.produce((0, 0), 100)
    world.settle()
    world.check_quiet()
    assert [key for key, _ in world.pushed] == [(0, 0, seq) for seq in range(10)]
    assert world.outbox.counts.acked == 10
    assert sum(world.outbox.counts.dropped.values()) == 0


def test_a_forwarder_killed_between_send_and_answer_loses_nothing_that_it_held_a_lease_for(
    world: World,
) -> None:
    for _ in range(8):
        world.produce((0, 0), 100)
    world.connect()
    world.take()
    world.hear()
    world.pull(8)
    world.send()
    while world.take():
        pass
    assert len(world.pushed) == 8
    world.kill_forwarder()  # the receiver's answer is under way
    world.settle()
    world.check_quiet()
    counts = world.outbox.counts
    assert (counts.acked, sum(counts.dropped.values()), len(world.pushed)) == (8, 0, 8)


def test_what_a_killed_forwarder_had_taken_over_from_the_bus_is_counted_as_killed(
    world: World,
) -> None:
    for _ in range(8):
        world.produce((0, 0), 100)
    world.pull(8)
    world.pass_time(2.0)  # no receiver: the lease is acknowledged after hold_s
    world.publish()
    assert world.outbox.counts.in_flight == 8
    world.kill_forwarder()
    world.settle()
    world.check_quiet()
    assert world.outbox.counts.dropped[Dropped.KILLED] == 8
    assert world.pushed == []


def test_packets_without_a_receiver_are_dropped_as_unreachable_after_wait_s(world: World) -> None:
    for _ in range(3):
        world.produce((0, 0), 100)
    world.pull(8)
    world.pass_time(5.5)
    assert world.outbox.counts.dropped[Dropped.UNREACHABLE] == 3
    assert world.outbox.is_empty


def test_a_batch_whose_answer_was_lost_is_asked_about_and_not_sent_again(world: World) -> None:
    for _ in range(4):
        world.produce((0, 0), 100)
    world.connect()
    world.take()
    world.hear()
    world.pull(4)
    world.send()
    while world.take():
        pass
    world.reset()  # the ACK never comes
    world.settle()
    world.check_quiet()
    assert world.ledger.accounts[0].duplicates == 0
    assert world.outbox.counts.acked == 4


def test_packets_beyond_the_memory_are_dropped_as_slow_and_the_bus_is_let_go(world: World) -> None:
    for _ in range(30):
        world.produce((0, 0), 1000)
    world.pull(30)
    counts = world.outbox.counts
    assert world.outbox.bytes <= MOST
    world.settle()
    world.check_quiet()
    assert counts.dropped[Dropped.SLOW] + counts.acked == 30
    assert counts.dropped[Dropped.SLOW] == 30 - len(world.pushed) > 0


def test_a_push_that_nobody_can_tell_of_counts_as_in_doubt_and_comes_once(world: World) -> None:
    for _ in range(4):
        world.produce((0, 0), 100)
    world.bus.die = "after unknown"
    world.settle()
    world.check_quiet()
    assert world.ledger.in_doubt == 4
    assert len(world.pushed) == 4


def test_what_of_a_push_did_not_happen_and_nobody_can_tell_is_all_that_is_lost(
    world: World,
) -> None:
    for _ in range(6):
        world.produce((0, 0), 100)
    world.bus.die = "within unknown"
    world.settle()
    world.check_quiet()
    assert world.ledger.in_doubt == 6
    assert len(world.pushed) == 3


def test_a_push_that_was_killed_half_way_is_finished_by_the_next_receiver(world: World) -> None:
    for _ in range(6):
        world.produce((0, 0), 100)
    world.bus.die = "within"
    world.settle()
    world.check_quiet()
    assert world.ledger.in_doubt == 0
    assert [key for key, _ in world.pushed] == [(0, 0, seq) for seq in range(6)]


def test_a_ring_that_takes_fewer_than_it_has_room_for_is_offered_the_rest(world: World) -> None:
    for _ in range(10):
        world.produce((0, 0), 100)
    world.bus.most = 3
    world.settle()
    world.check_quiet()
    assert [key for key, _ in world.pushed] == [(0, 0, seq) for seq in range(10)]
