"""What a bus must do, as plain lists: the state machine compares every backend with this."""

from __future__ import annotations

from dataclasses import dataclass, field

from asys_bench.contracts.bus import MAX_DELIVERIES, Delivery, DropReason, GroupSpec

Key = tuple[int, int]
"""(shard, seq) of a packet."""


@dataclass
class GroupModel:
    """One group: what it may still be given, what is claimed, and its counters."""

    spec: GroupSpec
    missed: int = 0
    pending: set[Key] = field(default_factory=set)
    claimed: set[Key] = field(default_factory=set)
    failures: dict[Key, int] = field(default_factory=dict)
    newest_seen: dict[int, int] = field(default_factory=dict)
    delivered: int = 0
    lost: int = 0
    dead: int = 0

    def claim(self, keys: list[Key]) -> None:
        """The bus handed these out in this order."""
        for key in keys:
            assert key in self.pending, f"{key} was not there for {self.spec.name}"
            self.pending.remove(key)
            self.claimed.add(key)
            shard, seq = key
            if key not in self.failures:
                assert seq > self.newest_seen.get(shard, -1), f"{key} came out of order"
                self.newest_seen[shard] = seq

    def acknowledge(self, keys: list[Key]) -> None:
        self.claimed.difference_update(keys)
        self.delivered += len(keys)

    def take_back(self, keys: list[Key]) -> None:
        """The reader failed or left."""
        self.claimed.difference_update(keys)
        if self.spec.delivery is Delivery.AT_MOST_ONCE:
            self.lost += len(keys)
            return
        for key in keys:
            self.failures[key] = self.failures.get(key, 0) + 1
            if self.failures[key] >= MAX_DELIVERIES:
                self.dead += 1
            else:
                self.pending.add(key)

    @property
    def ready(self) -> int:
        return len(self.pending) + len(self.claimed)


@dataclass
class BusModel:
    """All groups and the producers."""

    groups: dict[str, GroupModel]
    accepted: int = 0
    accepted_bytes: int = 0
    dropped: dict[DropReason, int] = field(default_factory=dict)
    next_seq: dict[int, int] = field(default_factory=dict)
    bodies: dict[Key, bytes] = field(default_factory=dict)

    def accept(self, shard: int, hook: str, body: bytes) -> None:
        seq = self.next_seq.get(shard, 0)
        self.next_seq[shard] = seq + 1
        self.bodies[shard, seq] = body
        self.accepted += 1
        self.accepted_bytes += len(body)
        for group in self.groups.values():
            if group.spec.hooks is None or hook in group.spec.hooks:
                group.pending.add((shard, seq))
            else:
                group.missed += 1

    def refuse(self, reason: DropReason | None) -> None:
        assert reason is not None, "a refusal without a reason"
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def join(self, spec: GroupSpec) -> None:
        self.groups[spec.name] = GroupModel(spec, missed=self.accepted)

    @property
    def held(self) -> int:
        """Packets that some group still holds."""
        return sum(group.ready for group in self.groups.values())
