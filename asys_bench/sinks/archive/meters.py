"""The archiver's metrics in the stats page; rows, packets, bytes and shards are kept per hook."""

from __future__ import annotations

from asys_bench.contracts.stats import Counter, Slot, StatsError
from asys_bench.sinks.archive.budget import Deleted
from asys_bench.system.files.refusal import WORDS

_PER_HOOK = ("archive_rows", "archive_packets", "archive_bytes", "archive_shards")


class HookMeters:
    """Counters of one hook: rows, packets, bytes of the files, shards started."""

    def __init__(self, slot: Slot, hook: str) -> None:
        self.rows, self.packets, self.bytes, self.shards = (
            slot.counter(name, hook=hook) for name in _PER_HOOK
        )


class Meters:
    """All counters of one archiver. A slot without room counts further hooks as `hook=other`."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self.duplicates: Counter = slot.counter("archive_duplicates_skipped")
        """Redelivered packets that were in the archive already."""
        self.damaged: Counter = slot.counter("archive_damaged_packets")
        """Packets that fail their checksum or cannot be decoded; they are skipped."""
        # From the start: a rate over a counter that appears with its first drop misses that drop.
        self._dropped = {
            (what, reason): slot.counter(f"archive_dropped_{what}", reason=reason)
            for what in ("packets", "rows")
            for reason in WORDS
        }
        self._deleted: dict[str, list[Counter]] = {}
        self._other = HookMeters(slot, "other")
        self._hooks: dict[str, HookMeters] = {}

    def hook(self, name: str) -> HookMeters:
        found = self._hooks.get(name)
        if found is None:
            try:
                found = HookMeters(self._slot, name)
            except StatsError:
                found = self._other
            self._hooks[name] = found
        return found

    def dropped(self, reason: str, packets: int, rows: int) -> None:
        """Count what the disk did not take; `reason` is one of `system.files.refusal.WORDS`."""
        self._dropped["packets", reason].add(packets)
        self._dropped["rows", reason].add(rows)

    def deleted(self, reason: str, total: Deleted) -> None:
        """Set what was deleted so far for `reason`: the record of deletions is what counts."""
        if reason not in self._deleted:
            self._deleted[reason] = [
                self._slot.counter(f"archive_deleted_{what}", reason=reason)
                for what in ("shards", "rows", "packets", "bytes")
            ]
        values = (total.shards, total.rows, total.packets, total.bytes)
        for counter, value in zip(self._deleted[reason], values, strict=True):
            counter.set(value)
