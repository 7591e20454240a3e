"""`max_gib`: the oldest closed shards are deleted, and every deletion is on record.

Each of the n workers of a group keeps its own closed shards within `max_gib / n`. So no two workers
can delete one shard, nobody waits for a lock, and what they hold together is never more than the
budget and the shards that are open.

PROTOCOL of one deletion
1. RECORD. A line in `archive/<worker>.deleted.jsonl` names the shard, its rows and the reason.
2. DELETE. The shard is unlinked, then its sidecar. A reader that has it open reads on.

A worker that is killed between the two leaves a shard that is on record: its successor (or
`asys-run verify --repair`) finishes step 2. Totals are sums over the record, which names each shard
once, so a crash can neither lose a deletion nor count it twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.sinks.archive.layout import SUFFIX, ShardName
from asys_bench.sinks.archive.sidecar import ArchiveError, Sidecar
from asys_bench.system.files.append_file import AppendFile
from asys_bench.system.files.below import parse_json, remove, scan_if_there, text_lines

log = logging.getLogger(__name__)
RECORD_SUFFIX = ".deleted.jsonl"
BUDGET = "budget"
"""The reason of a deletion that kept `max_gib`."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """One line of the record. `shard` is relative to the archive's folder; counts are its sidecar's."""

    shard: str
    hook: str
    rows: int
    packets: int
    bytes: int
    reason: str = BUDGET


_LINE = TypeAdapter(Deletion)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What deletions add up to."""

    shards: int = 0
    rows: int = 0
    packets: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, deletions: Iterable[Deletion]) -> Deleted:
        found = list(deletions)
        return cls(
            len(found),
            sum(one.rows for one in found),
            sum(one.packets for one in found),
            sum(one.bytes for one in found),
        )


def read_deletions(run_dir: Path | str) -> dict[str, Deletion]:
    """Shard (relative to the archive's folder) -> its deletion, over all workers of a run.

    A line that cannot be read is left out: its writer was killed, and the shard is still there.
    """
    found: dict[str, Deletion] = {}
    try:
        entries = scan_if_there(Path(run_dir) / ARCHIVE_DIR, below=Path(run_dir))
    except OSError:  # the archive's own reader says so
        return {}
    for path, _ in entries:
        if path.name.endswith(RECORD_SUFFIX):
            found.update(_read(path))
    return found


def _read(path: Path) -> dict[str, Deletion]:
    found: dict[str, Deletion] = {}
    for line in text_lines(path):
        try:
            one = _LINE.validate_python(parse_json(line))
        except ValueError:
            continue
        if _is_shard(one.shard):
            found[one.shard] = one
    return found


def _is_shard(name: str) -> bool:
    """Whether it is `<hook's folder>/<shard>`: the record is input, and what it names is deleted."""
    folder, _, file = name.partition("/")
    return folder not in ("", ".", "..") and "/" not in file and ShardName.parse(file) is not None


def finish(archive: Path, deletion: Deletion) -> bool:
    """Step 2 for a shard that is on record; False when nothing of it was there any more."""
    shard = archive / deletion.shard
    there = False
    for path in (shard, Sidecar.path_of(shard)):
        if os.path.lexists(path):
            remove(path, below=archive)
            there = True
    return there


def _last_seq(shard: Path) -> int:
    """The newest packet in a closed shard: its age among those of other hooks, which wall clocks and
    file times do not tell. -1: unknown."""
    try:
        sidecar = Sidecar.read(shard)
    except ArchiveError:
        return -1
    return max((part.last_seq for part in sidecar.ranges), default=-1) if sidecar else -1


class Budget:
    """Keeps the closed shards of one worker within `most_bytes`.

    publish: called with the totals of this worker's deletions by reason, whenever they change.
    """

    def __init__(
        self,
        run_dir: Path,
        worker: str,
        most_bytes: int,
        heartbeat: Callable[[], None],
        publish: Callable[[str, Deleted], None],
    ) -> None:
        self.most_bytes = most_bytes
        self._archive = run_dir / ARCHIVE_DIR
        self._worker, self._heartbeat, self._publish = worker, heartbeat, publish
        self._record_path = self._archive / f"{worker}{RECORD_SUFFIX}"
        self._record: AppendFile | None = None
        self._closed: deque[tuple[Path, int]] = deque()
        """Closed shards with their bytes, the oldest first."""
        self._held = 0
        self._total = Deleted()
        self._said = False

    def resume(self) -> None:
        """Finish what an earlier incarnation recorded; call it before its shards are taken over."""
        recorded = _read(self._record_path)
        for deletion in recorded.values():
            self._heartbeat()
            finish(self._archive, deletion)
        self._total = Deleted.of(recorded.values())
        self._publish(BUDGET, self._total)

    def adopt(self) -> None:
        """Take charge of the closed shards of earlier incarnations."""
        found = []
        for path in self._archive.glob(f"*/{self._worker}-*{SUFFIX}"):
            name = ShardName.parse(path.name)
            if name is None or name.worker != self._worker:
                continue
            if Sidecar.path_of(path).exists():
                found.append((name.attempt, name.incarnation, _last_seq(path), name.number, path))
                self._heartbeat()
        for *_, path in sorted(found):
            self._add(path)
        self._keep_within()

    def closed(self, path: Path) -> None:
        """`path` was closed just now: it is the youngest. Older ones may have to go."""
        self._add(path)
        self._keep_within()

    def _add(self, path: Path) -> None:
        try:
            size = path.stat().st_size + Sidecar.path_of(path).stat().st_size
        except FileNotFoundError:
            return
        self._closed.append((path, size))
        self._held += size

    def _keep_within(self) -> None:
        while self._held > self.most_bytes and self._closed:
            path, size = self._closed[0]
            self._heartbeat()
            try:
                self._delete(path)
            except OSError as error:
                if not self._said:
                    log.error("%s is over the budget and cannot be deleted: %s", path, str(error))
                    self._said = True
                return
            self._closed.popleft()
            self._held -= size

    def _delete(self, path: Path) -> None:
        name = path.relative_to(self._archive).as_posix()
        try:
            counts = Sidecar.read(path)
        except ArchiveError:
            counts = None
        deletion = (
            Deletion(name, counts.hook, counts.rows, counts.packets, counts.bytes)
            if counts is not None
            else Deletion(name, "", 0, 0, path.stat().st_size)
        )
        if self._record is None:
            self._record = AppendFile(self._record_path)
        self._record.write(json.dumps(asdict(deletion)) + "\n")
        finish(self._archive, deletion)
        before = self._total
        self._total = Deleted(
            before.shards + 1,
            before.rows + deletion.rows,
            before.packets + deletion.packets,
            before.bytes + deletion.bytes,
        )
        self._publish(BUDGET, self._total)
