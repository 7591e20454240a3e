"""The tables of a segment: interned names, groups, and the owner ids of their members.

The rules of `cpp_spmc/segment/tables.cpp`: entries become visible only when complete, edits are serialised by
a lock that names its holder, so the lock of a killed editor is broken by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from asys_bench.backends.numba_ring.core import layout as at
from asys_bench.backends.numba_ring.core.words import reap
from asys_bench.backends.numba_ring.liveness import (
    identity_generation,
    identity_of,
    identity_pid,
    is_dead,
)
from asys_bench.backends.numba_ring.segment import Segment
from asys_bench.contracts.bus import BusError

_LOCK_POLL_S = 0.0001
_LOOK_AT_HOLDER_EVERY = 64
_PATIENCE = 30_000  # polls: a few seconds


class Group(NamedTuple):
    """A row of the group table."""

    number: int
    name: str
    at_least_once: bool
    temporary: bool
    """Made late: it is let go when it has no members."""


class Tables:
    """Reads and edits the tables of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._words = segment.words
        self._ids: dict[str, int] = {}
        """Names read so far; a name keeps its id."""

    # Names.

    def name_count(self) -> int:
        return min(self._words.load(at.HDR_NAME_COUNT), at.NAMES)

    def name_of(self, name_id: int) -> str:
        count = self.name_count()
        if not 0 <= name_id < count:
            raise BusError(f"no name with id {name_id}; the bus has interned {count}")
        base = at.NAMES_OFFSET + name_id * at.NAME_STRIDE
        return self._read_text(base + at.NAM_TEXT, base + at.NAM_LENGTH, at.NAME_BYTES)

    def intern(self, name: str) -> int:
        """The id of `name`; a new one if it has none. BusError: too long, or the table is full."""
        text = name.encode()
        if len(text) > at.NAME_BYTES:
            raise BusError(
                f"the name {name[:40]}... has {len(text)} bytes of UTF-8; at most {at.NAME_BYTES} fit"
            )
        with self._editing():
            count = self.name_count()
            for name_id in range(len(self._ids), count):
                self._ids.setdefault(self.name_of(name_id), name_id)
            if name in self._ids:
                return self._ids[name]
            if count == at.NAMES:
                raise BusError(f"the name table is full ({at.NAMES}): {name} has no room")
            base = at.NAMES_OFFSET + count * at.NAME_STRIDE
            self._write_text(base + at.NAM_TEXT, text)
            self._words.store(base + at.NAM_LENGTH, len(text))
            self._words.store(at.HDR_NAME_COUNT, count + 1)
            return count

    # Groups.

    def group_mask(self) -> int:
        return self._words.load(at.HDR_GROUP_MASK)

    def groups(self) -> list[Group]:
        mask = self.group_mask()
        return [self._group(index) for index in range(at.GROUPS) if mask >> index & 1]

    def group_names(self) -> list[str]:
        return [group.name for group in self.groups()]

    def find_group(self, name: str) -> Group | None:
        return next((group for group in self.groups() if group.name == name), None)

    def add_group(
        self, name: str, at_least_once: bool, temporary: bool, hooks: Sequence[int] | None
    ) -> Group:
        """Find or make. A new group sees what is published after this returns."""
        text = name.encode()
        if not 1 <= len(text) <= at.GROUP_NAME_BYTES:
            raise BusError(
                f"a group's name must have 1..{at.GROUP_NAME_BYTES} bytes, not {len(text)}"
            )
        with self._editing():
            found = self.find_group(name)
            if found is not None:
                return found
            mask = self.group_mask()
            index = next((i for i in range(at.GROUPS) if not mask >> i & 1), None)
            if index is None:
                raise BusError(
                    f"no room for group {name}: a bus has at most {at.GROUPS} groups; let its readers "
                    "join an existing one"
                )
            base = at.GROUPS_OFFSET + index * at.GROUP_STRIDE
            self._write_text(base + at.GRP_NAME, text)
            self._words.store(base + at.GRP_NAME_LENGTH, len(text))
            flags = int(at_least_once) | (hooks is not None) << 1 | temporary << 2
            self._words.store(base + at.GRP_FLAGS, flags)
            bits = sum(1 << hook for hook in set(hooks or ()))
            for word in range(at.NAMES // 64):
                self._words.store(base + at.GRP_HOOKS + word * 8, bits >> (64 * word))
            geometry = self._segment.geometry
            for number in range(geometry.shards):
                shard = at.SHARDS_OFFSET + number * geometry.shard_stride
                wseq = self._words.load(shard + at.SH_WSEQ)
                hint = shard + at.SH_HINTS + index * at.SH_HINT_STRIDE
                self._words.store(hint, wseq & at.SEQ_MASK)
            # From now on it is seen.
            self._words.set_bits(at.HDR_GROUP_MASK, (1 | 1 << at.ACTIVE_SHIFT) << index)
            return self._group(index)

    def retire(self, name: str) -> None:
        """From now on this group is temporary, too."""
        group = self.find_group(name)
        if group is None:
            raise BusError(f"no group {name!r} to retire; this bus has {self.group_names()}")
        base = at.GROUPS_OFFSET + group.number * at.GROUP_STRIDE
        self._words.set_bits(base + at.GRP_FLAGS, 4)
        self.let_go_of_empty_groups()

    # Owners: who holds a claim.

    def register_owner(self, group: int) -> int:
        """An owner id (index << 10 | generation) for a member of `group`, which gets packets now."""
        for _ in range(2):
            with self._editing():  # the group is not let go in between
                for index in range(1, at.OWNERS):
                    offset = self._owner(index)
                    word = self._words.load(offset)
                    if identity_pid(word) != 0:
                        continue
                    generation = (identity_generation(word) + 1) & at.GENERATION_MASK
                    if self._words.swap(offset, word, self._segment.identity | generation):
                        self._words.store(offset + at.OWN_GROUP, group)
                        self._words.set_bits(at.HDR_GROUP_MASK, 1 << at.ACTIVE_SHIFT << group)
                        return index << 10 | generation
            self.reap_dead()
        raise BusError(
            f"no room for another member: {at.OWNERS - 1} live subscriptions hold this bus; close some"
        )

    def free_owner(self, owner: int) -> None:
        """Give back an id; its claims must be settled first."""
        offset = self._owner(owner >> 10)
        word = self._words.load(offset)
        if identity_generation(word) == owner & at.GENERATION_MASK:
            self._words.swap(offset, word, word & at.GENERATION_MASK)

    def let_go_of_empty_groups(self) -> None:
        """Temporary groups without a member get no more packets, until someone joins again."""
        if not self._words.swap(at.HDR_TABLE_LOCK, 0, self._segment.identity):
            return  # a push must not wait; the next one tries again
        try:
            empty = {group.number for group in self.groups() if group.temporary}
            for index in range(1, at.OWNERS) if empty else ():
                offset = self._owner(index)
                if identity_pid(self._words.load(offset)) != 0:
                    empty.discard(self._words.load(offset + at.OWN_GROUP))
            if empty:
                bits = sum(1 << at.ACTIVE_SHIFT << group for group in empty)
                self._words.clear_bits(at.HDR_GROUP_MASK, bits)
        finally:
            self._words.store(at.HDR_TABLE_LOCK, 0)

    def pass_over(self, group: int) -> None:
        """A temporary group whose members stand still while the ring is full: what they hold is lost to
        them, what waits for them is passed over, and nothing comes until one of them looks again
        (`stay_in`)."""
        self._words.clear_bits(at.HDR_GROUP_MASK, 1 << at.ACTIVE_SHIFT << group)
        for index in range(1, at.OWNERS):
            word = self._words.load(self._owner(index))
            if identity_pid(word) and self._words.load(self._owner(index) + at.OWN_GROUP) == group:
                self.reap_owner(index << 10 | identity_generation(word), group)

    def stay_in(self, group: int) -> None:
        active = 1 << at.ACTIVE_SHIFT << group
        if not self.group_mask() & active:
            self._words.set_bits(at.HDR_GROUP_MASK, active)

    def reap_owner(self, owner: int, only_group: int | None = None) -> int:
        """Settle the claims of one owner id. Returns packets taken back."""
        geometry = self._segment.geometry
        count = 0
        for group in self.groups():
            if only_group not in (None, group.number):
                continue
            for number in range(geometry.shards):
                shard = self._segment.shard_address(number)
                count += reap(shard, geometry.slots, group.number, owner, int(group.at_least_once))
        if count:
            self._segment.ring()
        return count

    def reap_dead(self) -> int:
        """Take back everything that the owner table's dead processes hold."""
        count = 0
        for index in range(1, at.OWNERS):
            word = self._words.load(self._owner(index))
            ours = identity_of(word) == self._segment.identity
            if identity_pid(word) == 0 or ours or not is_dead(word):
                continue
            owner = index << 10 | identity_generation(word)
            count += self.reap_owner(owner)
            self.free_owner(owner)
        return count

    def reap_pid(self, pid: int) -> int:
        """The same for one process that the caller knows to be dead."""
        count = 0
        for index in range(1, at.OWNERS):
            word = self._words.load(self._owner(index))
            if identity_pid(word) == 0 or identity_pid(word) != pid:
                continue
            owner = index << 10 | identity_generation(word)
            count += self.reap_owner(owner)
            # A caller that was wrong about the death loses nothing: the member keeps its id and goes
            # on, and its release of what was taken fails.
            if is_dead(word):
                self.free_owner(owner)
        return count

    # Text in shared memory goes word by word: every access to the segment is an atomic word.

    def _write_text(self, offset: int, text: bytes) -> None:
        for start in range(0, len(text), 8):
            self._words.store(offset + start, int.from_bytes(text[start : start + 8], "little"))

    def _read_text(self, offset: int, length_offset: int, most: int) -> str:
        length = self._words.load(length_offset)
        if length > most:
            raise BusError(f"a name in the segment claims {length} bytes: the segment is damaged")
        words = (self._words.load(offset + start) for start in range(0, length, 8))
        text = b"".join(word.to_bytes(8, "little") for word in words)[:length]
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise BusError(
                f"a name in the segment is no UTF-8 ({text[:20]!r}): the segment is damaged"
            ) from None

    def _group(self, index: int) -> Group:
        base = at.GROUPS_OFFSET + index * at.GROUP_STRIDE
        name = self._read_text(base + at.GRP_NAME, base + at.GRP_NAME_LENGTH, at.GROUP_NAME_BYTES)
        flags = self._words.load(base + at.GRP_FLAGS)
        return Group(index, name, flags & 1 != 0, flags & 4 != 0)

    def _owner(self, index: int) -> int:
        return at.OWNERS_OFFSET + index * at.OWNER_STRIDE

    @contextmanager
    def _editing(self) -> Iterator[None]:
        identity = self._segment.identity
        turns = holder = 0
        while not self._words.swap(at.HDR_TABLE_LOCK, 0, identity):
            turns += 1
            if turns > _PATIENCE:
                raise BusError(
                    f"the bus's tables are locked by process {identity_pid(holder)}, which is stopped: "
                    "continue or kill it"
                )
            holder = self._words.load(at.HDR_TABLE_LOCK)
            if (
                turns % _LOOK_AT_HOLDER_EVERY == 0
                and holder != 0
                and is_dead(holder)
                and self._words.swap(at.HDR_TABLE_LOCK, holder, identity)
            ):
                break
            time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            self._words.store(at.HDR_TABLE_LOCK, 0)
