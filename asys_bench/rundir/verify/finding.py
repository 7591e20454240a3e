"""What was found out about one file, and about all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class State(StrEnum):
    """A file's state; `TORN` and `DAMAGED` are what the exit code is about.

    ok: whole and readable. being_written: a live process is at it; whole as far as it goes.
    torn: its writer died in the middle of its last record; what came before is good.
    damaged: bytes are not what was written, or something that belongs to it is missing.
    foreign: not a file of this run's formats; left alone. leftover: an unfinished file of a killed
    writer, under a temporary name; nothing is missing without it.
    """

    OK = "ok"
    BEING_WRITTEN = "being written"
    TORN = "torn"
    DAMAGED = "damaged"
    FOREIGN = "foreign"
    LEFTOVER = "leftover"


@dataclass(frozen=True, slots=True)
class Finding:
    """One file or checkpoint folder.

    path: relative to the run. kind: shard, checkpoint, table, log, events, window, document or other.
    rows: readable rows (of shards and tables), lines or records; None where there is no such thing.
    rows_twice: of them, those that another shard holds too; readers leave them out by key.
    lost_rows: rows that are known to be gone; None: unknown. lost_bytes: bytes without a meaning.
    repair: what `--repair` did; None: nothing.
    """

    path: str
    kind: str
    state: State
    detail: str = ""
    rows: int | None = None
    rows_twice: int = 0
    lost_rows: int | None = 0
    lost_bytes: int = 0
    repair: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verification:
    """A whole run. `live`: its host or a worker of it is at work."""

    run_dir: Path
    run_id: str
    live: bool
    findings: tuple[Finding, ...]

    @property
    def damaged(self) -> bool:
        """Something was torn or damaged, repaired since or not."""
        return any(f.state in (State.TORN, State.DAMAGED) for f in self.findings)

    def count(self, state: State) -> int:
        return sum(found.state is state for found in self.findings)

    def to_plain(self) -> dict[str, Any]:
        """The document of `asys-run verify --json`."""
        shards = [found for found in self.findings if found.kind == "shard"]
        return {
            "schema": "asys.verify/1",
            "run": str(self.run_dir),
            "run_id": self.run_id,
            "live": self.live,
            "damaged": self.damaged,
            "states": {state.value: self.count(state) for state in State},
            "archive_rows": sum(found.rows or 0 for found in shards),
            "archive_rows_twice": sum(found.rows_twice for found in shards),
            "lost_bytes": sum(found.lost_bytes for found in self.findings),
            "files": [found.to_plain() for found in self.findings],
        }
