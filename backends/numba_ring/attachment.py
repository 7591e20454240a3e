"""What owner and client have in common: an open segment, its groups and its books."""

from __future__ import annotations

import numpy as np

from asys_bench.backends.numba_ring import forks
from asys_bench.backends.numba_ring.core import books_core
from asys_bench.backends.numba_ring.core.layout import GROUPS
from asys_bench.backends.numba_ring.core.words import signed
from asys_bench.backends.numba_ring.producer import REFUSALS
from asys_bench.backends.numba_ring.segment import Segment
from asys_bench.backends.numba_ring.subscription import RingSubscription
from asys_bench.backends.numba_ring.tables import Tables
from asys_bench.contracts.bus import BusAccount, BusError, Delivery, GroupAccount, GroupSpec


class Attachment:
    """An open segment and the subscriptions made through it."""

    def __init__(self, segment: Segment, spin_us: int, poll_us: int) -> None:
        self._segment: Segment | None = segment
        self._tables = Tables(segment)
        self._spin_us, self._poll_us = spin_us, poll_us
        self._subscriptions: list[RingSubscription] = []
        self._generation = forks.generation

    @property
    def segment(self) -> Segment:
        """The segment; BusError when it was closed or belongs to the parent process."""
        if self._segment is None:
            raise BusError("the bus was closed")
        if self._generation != forks.generation:
            raise forks.refuse()
        return self._segment

    @property
    def tables(self) -> Tables:
        _ = self.segment
        return self._tables

    @property
    def is_open(self) -> bool:
        return self._segment is not None and self._generation == forks.generation

    def add_group(self, spec: GroupSpec, *, temporary: bool) -> None:
        hooks = None
        if spec.hooks is not None:
            ids = {self.tables.name_of(i): i for i in range(self.tables.name_count())}
            unknown = [name for name in spec.hooks if name not in ids]
            if unknown:
                raise BusError(
                    f"group {spec.name!r} selects hooks {unknown} that the bus has not interned; it "
                    f"knows {sorted(ids)}"
                )
            hooks = [ids[name] for name in spec.hooks]
        again = spec.delivery is Delivery.AT_LEAST_ONCE
        group = self.tables.add_group(spec.name, again, temporary, hooks)
        if group.at_least_once != again:
            raise BusError(
                f"group {spec.name!r} exists with the other delivery mode; join it without a spec"
            )

    def subscribe(self, name: str, member: str, spec: GroupSpec | None) -> RingSubscription:
        group = self.tables.find_group(name)
        if group is None:
            if spec is None:
                known = self.tables.group_names()
                raise BusError(f"no group {name!r}; this bus has {known}. Pass a spec to create it")
            if spec.name != name:
                raise BusError(f"the spec is of group {spec.name!r}, not {name!r}")
            self.add_group(spec, temporary=True)
            group = self.tables.find_group(name)
            assert group is not None
        subscription = RingSubscription(self.segment, group, member, self._spin_us, self._poll_us)
        self._subscriptions = [known for known in self._subscriptions if not known.closed]
        self._subscriptions.append(subscription)
        return subscription

    def retire(self, name: str) -> None:
        watch = self.segment.owner_watch
        if watch is not None and watch.dead():
            raise BusError(
                f"cannot retire {name!r}: the bus's owner is dead, its groups end by draining"
            )
        self.tables.retire(name)

    def account(self) -> BusAccount:
        segment = self.segment
        groups = self._tables.groups()
        mask = sum(1 << group.number for group in groups)
        books = np.zeros(books_core.BOOK_WORDS, np.int64)
        address = int(books.__array_interface__["data"][0])
        for shard in range(segment.geometry.shards):
            books_core.read_shard(
                segment.shard_address(shard),
                segment.geometry.slots,
                signed(segment.initial_seq),
                mask,
                address,
            )
        counted = books.tolist()
        accepted = counted[books_core.ACCEPTED]
        dropped = counted[books_core.DROPS : books_core.DROPS + len(REFUSALS)]

        def account_of(name: str, number: int) -> GroupAccount:
            tallies = counted[books_core.TALLY + number : books_core.READY : GROUPS]
            lost, dead, redelivered, left = tallies
            ready = counted[books_core.READY + number]
            missed = counted[books_core.MISSED + number] + left
            delivered = accepted - lost - dead - ready - missed
            return GroupAccount(name, delivered, lost, dead, redelivered, ready, missed)

        return BusAccount(
            produced=accepted + sum(dropped),
            dropped={reason.value: n for reason, n in zip(REFUSALS, dropped, strict=True)},
            produced_bytes=counted[books_core.BYTES],
            groups=tuple(account_of(group.name, group.number) for group in groups),
        )

    def close(self) -> None:
        """Leave every group and let go of the segment."""
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
        self._segment = None
