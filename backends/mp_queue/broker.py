"""The queues of the bus: what each group still has to read, and every counter. No I/O, no threads.

One lock guards it. Producers take it for the few lines of `accept` and `refuse`; the I/O thread
for `take`, `settle` and the like. Nobody holds it while copying, sending or waiting.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from typing import NamedTuple

from asys_bench.backends.mp_queue import counters as c
from asys_bench.backends.mp_queue.arena import Arena, Slot
from asys_bench.contracts.bus import (
    MAX_DELIVERIES,
    BusAccount,
    BusError,
    BusRequest,
    Delivery,
    DropReason,
    GroupSpec,
)

_NOBODY_WAITS = sys.maxsize
_WANT_OF_ROOM = (DropReason.FULL, DropReason.TIMEOUT)


class Group:
    """One group's queue; the bus lock guards it."""

    __slots__ = (
        "active", "attempts", "cell", "declared", "hooks",
        "in_flight", "members", "pending", "retired", "retry", "spec", "wake_at",
    )  # fmt: skip

    def __init__(self, spec: GroupSpec, cell: int, *, declared: bool) -> None:
        self.spec = spec
        self.hooks = None if spec.hooks is None else frozenset(spec.hooks)
        self.retry = spec.delivery is Delivery.AT_LEAST_ONCE
        self.cell = cell
        self.declared = declared
        self.retired = False
        self.active = True
        self.members = 0
        self.pending: deque[Slot] = deque()
        self.in_flight = 0
        self.attempts: dict[int, int] = {}
        """Arrival order -> failed deliveries, for the few packets that had any."""
        self.wake_at = _NOBODY_WAITS
        """Pending packets at which the I/O thread must be woken."""


class Route(NamedTuple):
    """Where packets of one hook go."""

    takers: tuple[Group, ...]
    missed_cells: tuple[int, ...]


class Broker:
    """All groups, counters and names of one bus."""

    def __init__(self, request: BusRequest) -> None:
        self.lock = threading.Lock()
        self.arenas = [
            Arena(
                request.capacity_packets,
                request.capacity_bytes,
                shared=request.shards > 1 and hasattr(os, "memfd_create"),
            )
            for _ in range(request.shards)
        ]
        self.request = request
        self._taken: set[int] = set()
        self.page = c.CounterWriter()
        self.groups: dict[str, Group] = {}
        self.names: dict[str, int] = {}
        self.finished = False
        self.room = threading.Event()
        """Set whenever packets were settled; `push` waits on it."""
        self._order = 0
        self._refused = 0
        self._oldest: set[int] = set()
        """As `standing_still` found them last."""
        self._routes: dict[int, Route] = {}
        try:
            for name in ("identity", *request.names):
                self.intern(name)
            for spec in request.groups:
                if spec.name in self.groups:
                    raise BusError(f"group {spec.name!r} is declared twice")
                self._add_group(spec, declared=True)
        except BusError:
            self.close()
            raise

    # Producers.

    def route(self, hook_id: int) -> Route:
        """Who takes packets of `hook_id`, now."""
        route = self._routes.get(hook_id)
        if route is None:
            with self.lock:
                route = self._find_route(hook_id)
        return route

    def take_shard(self, shard: int) -> None:
        """Its one producer is made now. Raises BusError: no such shard, or it was taken."""
        with self.lock:
            if not 0 <= shard < len(self.arenas):
                raise BusError(f"no shard {shard}; this bus has 0..{len(self.arenas) - 1}")
            if shard in self._taken:
                raise BusError(
                    f"the producer of shard {shard} was already handed out; one writes a shard, for "
                    "as long as the bus lives"
                )
            self._taken.add(shard)

    def accept(
        self, hook_id: int, shard: int, offset: int, size: int, nbytes: int
    ) -> bool | DropReason:
        """Queue the frame that lies at `offset` of the shard's arena for every group that selects it.

        True: wake the I/O thread. A reason: it was not taken, and is not counted yet.
        """
        with self.lock:
            if self.finished:
                return DropReason.CLOSED
            takers, missed = self._routes.get(hook_id) or self._find_route(hook_id)
            cells = self.page.cells
            wake = False
            arena = self.arenas[shard]
            if takers or arena.shared:  # a far producer's record holds every frame
                self._order += 1
                slot = Slot(self._order, shard, offset, size, nbytes, len(takers))
                arena.add(slot)
                for group in takers:
                    group.pending.append(slot)
                    cells[group.cell + c.READY] += 1
                    if len(group.pending) >= group.wake_at:
                        group.wake_at = _NOBODY_WAITS
                        wake = True
                if not takers:
                    arena.free_oldest()
            for cell in missed:
                cells[cell] += 1
            cells[c.PRODUCED] += 1
            cells[c.PRODUCED_BYTES] += nbytes
            self.page.publish()
            return wake

    def refuse(self, reason: DropReason, count: int = 1) -> None:
        """Count offered packets as dropped."""
        with self.lock:
            cells = self.page.cells
            cells[c.PRODUCED] += count
            cells[c.DROPPED + c.REASON_INDEX[reason]] += count
            self.page.publish()

    def catch_up(self, timeout_s: float = 0.0) -> None:
        """Wait for packets to be settled, at most `timeout_s`."""
        if timeout_s > 0:
            self.room.wait(timeout_s)
            self.room.clear()

    # The I/O thread.

    def join(self, name: str, spec: GroupSpec | None) -> Group:
        """One more member of a group; creates it when `spec` is given.

        Raises:
            BusError: unknown group without a spec, or a spec that contradicts the group.
        """
        with self.lock:
            group = self.groups.get(name)
            if spec is not None and spec.name != name:
                raise BusError(f"spec is for group {spec.name!r}, not {name!r}")
            if group is None or not (group.active or group.declared or spec is not None):
                if spec is None:
                    known = sorted(name for name, group in self.groups.items() if group.active)
                    raise BusError(f"no group {name!r}; valid: {known}, or pass a GroupSpec")
                group = self._add_group(spec, declared=False)
            elif spec is not None and spec != group.spec:
                if group.active:
                    raise BusError(f"group {name!r} exists as {group.spec}, not {spec}")
                self._revive(group, spec)
            elif not group.active:
                self._revive(group, group.spec)
            group.members += 1
            return group

    def leave(self, group: Group) -> None:
        """One member fewer; a late-joined group without members is dropped."""
        with self.lock:
            group.members -= 1
            self._end_if_empty(group)

    def retire(self, name: str) -> None:
        """The declared group `name` ends once it has no members. Raises BusError: no such group."""
        with self.lock:
            group = self.groups.get(name)
            if group is None:
                raise BusError(f"no group {name!r}; the bus has {sorted(self.groups)}")
            group.retired = True
            self._end_if_empty(group)

    def take(self, group: Group, most: int, least: int) -> list[Slot] | None:
        """Claim up to `most` packets; None (nothing claimed) when fewer than `least` are there."""
        with self.lock:
            pending = group.pending
            count = min(most, len(pending))
            if count < least and not (self.finished and count):
                group.wake_at = min(group.wake_at, least)
                return None
            items = [pending.popleft() for _ in range(count)]
            group.in_flight += count
            if group.attempts and count:
                repeats = sum(1 for item in items if item.order in group.attempts)
                self.page.cells[group.cell + c.REDELIVERED] += repeats
                self.page.publish()
            return items

    def acknowledge(self, group: Group, items: list[Slot]) -> None:
        """The reader is done with `items`."""
        with self.lock:
            group.in_flight -= len(items)
            if group.attempts:
                for item in items:
                    group.attempts.pop(item.order, None)
            self._resolve(group, items, c.DELIVERED)
            self.page.publish()

    def take_back(self, group: Group, items: list[Slot], *, seen: bool) -> None:
        """The reader died or failed. `seen` False: the packets never reached an application."""
        with self.lock:
            group.in_flight -= len(items)
            if seen and not group.retry:
                self._resolve(group, items, c.LOST)
            else:
                self._requeue(group, items, seen=seen)
            self.page.publish()

    def take_freed(self, shard: int) -> int:
        """Frames of `shard` that were freed since the last call."""
        with self.lock:
            return self.arenas[shard].take_freed()

    def standing_still(self) -> list[Slot]:
        """The oldest frame of each shard that has refused packets since the last call for want of room,
        where it was the oldest at that call as well."""
        with self.lock:
            cells = self.page.cells
            refused = sum(cells[c.DROPPED + c.REASON_INDEX[reason]] for reason in _WANT_OF_ROOM)
            before, self._refused = self._refused, refused
            oldest = [arena.slots[0] for arena in self.arenas if arena.slots]
            seen, self._oldest = self._oldest, {slot.order for slot in oldest}
            return [slot for slot in oldest if refused > before and slot.order in seen]

    def exhausted(self, group: Group) -> bool:
        """True when nothing will ever come for `group`."""
        with self.lock:
            return self.finished and not group.pending and not group.in_flight

    # Anyone in the owner process.

    def intern(self, name: str) -> int:
        """The id of `name`. Raises BusError: table full or name too long."""
        found = self.names.get(name)
        if found is not None:
            return found
        c.check_name(name)
        with self.lock:
            if name not in self.names:
                self.names[name] = self.page.add_name(name)
                self._routes.clear()
            return self.names[name]

    def name_of(self, name_id: int) -> str:
        """The name behind an id. Raises BusError when there is none."""
        for name, index in tuple(self.names.items()):
            if index == name_id:
                return name
        raise BusError(f"no interned name {name_id}; the bus has {len(self.names)}")

    def finish(self) -> None:
        """Accept nothing more."""
        self.finished = True
        self.room.set()

    def account(self) -> BusAccount:
        """A consistent copy of the counters; also after `close`."""
        with self.lock:
            return c.account_of(self.page.cells, self.page.groups)

    def fill_ratio(self) -> float:
        """How full the fullest shard is, 0..1."""
        return max(arena.fill_ratio() for arena in self.arenas)

    def close(self) -> None:
        """Unmap everything; the account stays readable."""
        with self.lock:
            self.finished = True
            self.page.close()
            for group in self.groups.values():
                group.pending.clear()
            for arena in self.arenas:
                arena.close()

    # Under the lock.

    def _end_if_empty(self, group: Group) -> None:
        waits = group.declared and not group.retired
        if group.members or waits or not group.active:
            return
        group.active = False
        group.wake_at = _NOBODY_WAITS
        group.attempts.clear()
        self._routes.clear()
        items = list(group.pending)
        group.pending.clear()
        self._resolve(group, items, c.MISSED)
        self.page.publish()

    def _find_route(self, hook_id: int) -> Route:
        name = next((name for name, index in self.names.items() if index == hook_id), None)
        takers, missed = [], []
        for group in self.groups.values():
            if group.active and (group.hooks is None or name in group.hooks):
                takers.append(group)
            else:
                missed.append(group.cell + c.MISSED)
        route = self._routes[hook_id] = Route(tuple(takers), tuple(missed))
        return route

    def _add_group(self, spec: GroupSpec, *, declared: bool) -> Group:
        group = Group(spec, self.page.add_group(spec.name), declared=declared)
        cells = self.page.cells
        dropped = sum(cells[c.DROPPED : c.FIRST_GROUP])
        cells[group.cell + c.MISSED] = cells[c.PRODUCED] - dropped
        self.page.publish()
        self.groups = {**self.groups, spec.name: group}
        self._routes.clear()
        return group

    def _revive(self, group: Group, spec: GroupSpec) -> None:
        group.spec = spec
        group.hooks = None if spec.hooks is None else frozenset(spec.hooks)
        group.retry = spec.delivery is Delivery.AT_LEAST_ONCE
        group.active = True
        self._routes.clear()

    def _resolve(self, group: Group, items: list[Slot], outcome: int) -> None:
        cells = self.page.cells
        cells[group.cell + c.READY] -= len(items)
        cells[group.cell + outcome] += len(items)
        freed = False
        for item in items:
            item.refs -= 1
            freed = freed or not item.refs
        if freed:
            for arena in self.arenas:
                arena.free_oldest()
            self.room.set()

    def _requeue(self, group: Group, items: list[Slot], *, seen: bool) -> None:
        back, dead = [], []
        for item in items:
            if seen:
                failed = group.attempts[item.order] = group.attempts.get(item.order, 0) + 1
                if failed >= MAX_DELIVERIES:
                    del group.attempts[item.order]
                    dead.append(item)
                    continue
            back.append(item)
        self._resolve(group, dead, c.DEAD)
        if back:
            last = max(item.order for item in back)
            while group.pending and group.pending[0].order < last:
                back.append(group.pending.popleft())
            back.sort(key=lambda item: item.order, reverse=True)
            group.pending.extendleft(back)
