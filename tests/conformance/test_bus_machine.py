"""Any sequence of operations: the bus and the oracle agree on every packet and every counter."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asys_bench.contracts.bus import (
    BusPlugin,
    BusSubscription,
    Delivery,
    DropReason,
    GroupSpec,
    Lease,
)

from .oracle import BusModel, GroupModel, Key
from .support import PATIENCE_S, Buses, body_of, eventually, meta_of

HOOKS = ("layer.a", "layer.b")
SHARDS = 2
CAPACITY_PACKETS = 16
DECLARED = (
    GroupSpec("train"),
    GroupSpec("archive", Delivery.AT_LEAST_ONCE),
    GroupSpec("picky", Delivery.AT_LEAST_ONCE, hooks=("layer.b",)),
)
SIZES = st.sampled_from([0, 1, 63, 64, 65, 1000, 2000, 4096])


class BusMachine(RuleBasedStateMachine):
    """One bus, up to three members a group, leases held across steps."""

    plugin: BusPlugin

    def __init__(self) -> None:
        super().__init__()
        self.buses = Buses(self.plugin)
        self.bus = self.buses(
            *DECLARED, shards=SHARDS, packets=CAPACITY_PACKETS, nbytes=16 << 10, names=HOOKS
        )
        self.producers = [self.bus.producer(shard) for shard in range(SHARDS)]
        self.hook_ids = [self.bus.intern(hook) for hook in HOOKS]
        self.model = BusModel({spec.name: GroupModel(spec) for spec in DECLARED})
        self.members: list[BusSubscription] = []
        self.leases: list[tuple[BusSubscription, Lease, list[Key]]] = []
        self.number = 0
        self.finished = False

    # Producers.

    @rule(shard=st.integers(0, SHARDS - 1), hook=st.integers(0, 1), nbytes=SIZES)
    def push(self, shard: int, hook: int, nbytes: int) -> None:
        body, meta = self._next_packet(nbytes, hook)
        accepted = self.producers[shard].try_push(meta, body)
        self._note_offer(shard, hook, body, accepted)

    @rule(
        shard=st.integers(0, SHARDS - 1),
        hook=st.integers(0, 1),
        nbytes=SIZES,
        count=st.integers(2, 9),
    )
    def push_burst(self, shard: int, hook: int, nbytes: int, count: int) -> None:
        for _ in range(count):
            self.push(shard, hook, nbytes)

    @rule(
        shard=st.integers(0, SHARDS - 1),
        hook=st.integers(0, 1),
        nbytes=SIZES,
        spare=st.integers(0, 50),
        abort=st.booleans(),
    )
    def reserve(self, shard: int, hook: int, nbytes: int, spare: int, abort: bool) -> None:
        producer = self.producers[shard]
        reservation = producer.reserve(nbytes + spare)
        if reservation is None:
            self._note_offer(shard, hook, b"", False)
        elif abort:
            reservation.abort()
        else:
            body, meta = self._next_packet(nbytes, hook)
            reservation.view[:nbytes] = body
            accepted = reservation.commit(meta, nbytes)
            self._note_offer(shard, hook, body, accepted)

    @precondition(lambda self: not self.finished and self.number > 80)
    @rule()
    def finish(self) -> None:
        self.bus.finish()
        self.finished = True

    # Consumers.

    @precondition(lambda self: len(self.members) < 8)
    @rule(group=st.sampled_from([spec.name for spec in DECLARED]))
    def join(self, group: str) -> None:
        self.members.append(self.bus.subscribe(group, f"member{len(self.members)}"))

    @precondition(
        lambda self: (
            self.plugin.capabilities.joins_late
            and not self.finished
            and len(self.model.groups) == len(DECLARED)
        )
    )
    @rule(delivery=st.sampled_from(Delivery), hooks=st.sampled_from([None, ("layer.a",)]))
    def join_late(self, delivery: Delivery, hooks: tuple[str, ...] | None) -> None:
        spec = GroupSpec("late", delivery, hooks)
        self.members.append(self.bus.subscribe("late", "latecomer", spec))
        self.model.join(spec)

    @precondition(lambda self: self.members)
    @rule(which=st.integers(0, 100), most=st.integers(1, 9))
    def pull(self, which: int, most: int) -> None:
        member = self.members[which % len(self.members)]
        group = self.model.groups[member.group]
        lease = member.pull_batch(most, PATIENCE_S if group.pending else 0.0)
        assert bool(len(lease)) == bool(group.pending), f"{member.group} has {group.pending}"
        assert len(lease) <= most
        keys = [(packet.shard, packet.seq) for packet in lease]
        assert len(set(keys)) == len(keys), "given twice in one lease"
        group.claim(keys)
        for packet, key in zip(lease, keys, strict=True):
            assert bytes(packet.payload) == self.model.bodies[key], f"{key} is torn"
        if keys:
            self.leases.append((member, lease, keys))
        else:
            lease.release()

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 100))
    def release(self, which: int) -> None:
        member, lease, keys = self.leases.pop(which % len(self.leases))
        for packet, key in zip(lease, keys, strict=True):
            assert bytes(packet.payload) == self.model.bodies[key], f"{key} changed under a lease"
        assert lease.release() == len(keys)
        self.model.groups[member.group].acknowledge(keys)
        self._settle()

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 100))
    def give_back(self, which: int) -> None:
        member, lease, keys = self.leases.pop(which % len(self.leases))
        lease.give_back()
        self.model.groups[member.group].take_back(keys)
        self._settle()

    @precondition(lambda self: any(member.group != "late" for member in self.members))
    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        leavers = [member for member in self.members if member.group != "late"]
        member = leavers[which % len(leavers)]
        self.members.remove(member)
        mine = [entry for entry in self.leases if entry[0] is member]
        self.leases = [entry for entry in self.leases if entry[0] is not member]
        member.close()
        for _, lease, keys in mine:
            self.model.groups[member.group].take_back(keys)
            assert lease.release() == 0
        self._settle()

    @rule(most=st.integers(1, 9))
    def catch_up(self, most: int) -> None:
        """Every group reads all that is there."""
        for name, group in self.model.groups.items():
            reader = self._member_of(name)
            while group.pending:
                lease = reader.pull_batch(most, PATIENCE_S)
                keys = [(packet.shard, packet.seq) for packet in lease]
                assert keys, f"{name} has {group.pending}"
                group.claim(keys)
                for packet, key in zip(lease, keys, strict=True):
                    assert bytes(packet.payload) == self.model.bodies[key], f"{key} is torn"
                assert lease.release() == len(keys)
                group.acknowledge(keys)
        self._settle()

    @rule(group=st.sampled_from([spec.name for spec in DECLARED]), times=st.integers(1, 6))
    def fail_again_and_again(self, group: str, times: int) -> None:
        reader, model = self._member_of(group), self.model.groups[group]
        for _ in range(times):
            if model.pending:
                lease = reader.pull_batch(3, PATIENCE_S)
                keys = [(packet.shard, packet.seq) for packet in lease]
                assert keys, f"{group} has {model.pending}"
                model.claim(keys)
                lease.give_back()
                model.take_back(keys)
                self._settle()

    # What must hold.

    @invariant()
    def the_identity_holds(self) -> None:
        account = self.bus.account()
        for group in account.groups:
            assert account.imbalance(group) == 0, account

    @invariant()
    def the_producer_side_is_counted_at_once(self) -> None:
        account, model = self.bus.account(), self.model
        assert account.produced == model.accepted + sum(model.dropped.values())
        assert account.produced_bytes == model.accepted_bytes
        for reason in DropReason:
            assert account.dropped.get(reason.value, 0) == model.dropped.get(reason, 0)

    def teardown(self) -> None:
        try:
            self._read_everything()
        finally:
            for member in self.members:
                member.close()
            self.buses.close()

    def _member_of(self, group: str) -> BusSubscription:
        for member in self.members:
            if member.group == group:
                return member
        self.members.append(self.bus.subscribe(group, "another"))
        return self.members[-1]

    def _read_everything(self) -> None:
        if not self.finished:
            self.bus.finish()
        for member, lease, keys in self.leases:
            assert lease.release() == len(keys)
            self.model.groups[member.group].acknowledge(keys)
        self.leases = []
        for name, group in self.model.groups.items():
            reader = self._member_of(name)
            deadline = time.monotonic() + PATIENCE_S
            while not reader.ended:
                with reader.pull_batch(5, 0.05) as lease:
                    keys = [(packet.shard, packet.seq) for packet in lease]
                    group.claim(keys)
                group.acknowledge(keys)
                assert time.monotonic() < deadline, f"{name} does not end: {group}"
            assert not group.pending, "ended with packets left"
        self._settle()

    def _settle(self) -> None:
        """Acknowledgements may take effect a moment later; then every counter is exact."""

        def agrees() -> bool:
            account = self.bus.account()
            return all(
                (seen.delivered, seen.lost_in_flight, seen.dead_lettered, seen.ready, seen.missed)
                == (group.delivered, group.lost, group.dead, group.ready, group.missed)
                for name, group in self.model.groups.items()
                for seen in [account.group(name)]
            )

        eventually(agrees, "the account agrees with the oracle")

    def _next_packet(self, nbytes: int, hook: int):  # type: ignore[no-untyped-def]
        self.number += 1
        body = body_of(self.number, nbytes)
        return body, meta_of(self.number, nbytes, self.hook_ids[hook])

    def _note_offer(self, shard: int, hook: int, body: bytes, accepted: bool) -> None:
        reason = self.producers[shard].last_refusal
        if accepted:
            assert not self.finished, "accepted after finish"
            assert reason is None
            self.model.accept(shard, HOOKS[hook], body)
            return
        assert reason is (DropReason.CLOSED if self.finished else DropReason.FULL)
        assert self.finished or self.model.held, "an empty bus refused a small packet"
        self.model.refuse(reason)


@pytest.mark.rest
def test_any_sequence_of_operations_agrees_with_the_oracle(plugin: BusPlugin) -> None:
    machine = type("Machine", (BusMachine,), {"plugin": plugin})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            phases=[Phase.generate],  # a shrink that waits for a wedged bus takes minutes
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
