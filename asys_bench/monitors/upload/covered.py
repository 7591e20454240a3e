"""Which checkpoint of the host is covered: the copy has every archived row from before it.

Rows of an open shard are lost with their machine. A run that goes on from a covered checkpoint makes each
step anew whose rows the copy may lack, so that its archive has no hole; from a newer one, the rows between
the last shard that was sent and that checkpoint would be missing.

1. SEEN. A checkpoint of the host is new here: so many packets had been offered by then.
2. CONSUMED. The archivers' groups have settled as many: rows of steps before it are in shards.
3. COVERED. Each shard that was open or not yet sent at that moment is in the copy, or was deleted here.

Until then the copy keeps the last covered checkpoint, the next one that may become so, and the newest.
Archivers close their shards after a while when the run has a store, so this takes minutes at most. With
several workers on one group, and with several ranks, packets are not settled in the order of their steps:
there step 2 is right but for those in the hands of a worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asys_bench.config.document import enabled_sinks
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.run_files import STATE_DIR, checkpoint_order
from asys_bench.monitors.upload.ready import Kind, Ready


@dataclass
class _Seen:
    """A checkpoint that is not covered yet. offered: packets by then. waits_for: shards; None: its packets
    are not all consumed."""

    offered: int
    waits_for: set[str] | None = None


@dataclass
class Covered:
    """Of one run, as its uploader goes on.

    archivers: groups that archive. account: the bus's counters; None: there is no bus any more.
    """

    run_dir: Path
    archivers: Collection[str]
    account: Callable[[], BusAccount] | None = None
    newest: str = ""
    """The newest covered checkpoint, as `host-state/step_...`."""
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def look(self, ready: Ready, stored: Collection[str], *, ended: bool) -> None:
        """Find out what is covered now.

        stored: files of the copy. ended: the run has ended and the copy has all of it.
        """
        here = sorted(
            (u.name for u in ready.units if u.kind is Kind.CHECKPOINT and is_state(u.name)),
            key=order_of,
        )
        if ended:
            self.newest = here[-1] if here else self.newest
            self._seen.clear()
            return
        if self.account is None:
            return
        account = self.account()
        settled = min(
            (account.produced - g.ready for g in account.groups if g.group in self.archivers),
            default=account.produced,
        )
        for name in here:
            if order_of(name) > order_of(self.newest):
                self._seen.setdefault(name, _Seen(account.produced))
        for name in sorted(self._seen, key=order_of):
            seen = self._seen[name]
            if seen.waits_for is None and settled >= seen.offered:
                closed = {unit.name for unit in ready.units if unit.kind is Kind.SHARD}
                seen.waits_for = set(ready.open_shards) | closed - set(stored)
            if seen.waits_for is not None:
                seen.waits_for = {s for s in seen.waits_for if self._is_awaited(s, stored)}
            sent = any(file.startswith(f"{name}/") for file in stored)
            if seen.waits_for == set() and sent:
                self.newest = name
        newest = order_of(self.newest)
        self._seen = {n: s for n, s in self._seen.items() if order_of(n) > newest}

    def _is_awaited(self, shard: str, stored: Collection[str]) -> bool:
        return shard not in stored and os.path.lexists(self.run_dir / shard)

    def keeps(self, stored: Collection[str]) -> set[str]:
        """Checkpoints of the host that the copy keeps though they are not here any more."""
        held = {f"{STATE_DIR}/{name.split('/')[1]}" for name in stored if is_state(name)}
        coming = [name for name in sorted(self._seen, key=order_of) if name in held]
        self._seen = {n: s for n, s in self._seen.items() if n in coming[:1] or self._is_here(n)}
        return {self.newest, *coming[:1]} & held

    def _is_here(self, name: str) -> bool:
        return os.path.lexists(self.run_dir / name)


def is_state(name: str) -> bool:
    """Whether it is, or is in, a checkpoint of the host."""
    parts = name.split("/")
    return parts[0] == STATE_DIR and len(parts) > 1 and checkpoint_order(parts[1]) is not None


def order_of(name: str) -> tuple[int, int]:
    """By which checkpoints of the host follow each other."""
    return checkpoint_order(name.rpartition("/")[2]) or (-1, 0)


def archivers_in(config: Mapping[str, Any]) -> list[str]:
    """Names of the sinks that archive, of a configuration as plain data."""
    return [n for n, sink in enabled_sinks(config).items() if sink.get("kind") == "archiver"]
