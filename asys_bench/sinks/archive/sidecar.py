"""The sidecar `<shard>.json`: what a closed shard holds, so that nobody has to scan it to know.

It is written atomically once, when the shard is closed or repaired. A shard without one is being
written, or its writer died: its counts are recovered by walking its frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from asys_bench.system.files import replace_file
from asys_bench.system.files.below import MAX_MODEL_BYTES, read_file
from asys_bench.system.files.sources import is_elsewhere


class ArchiveError(ValueError):
    """A shard or sidecar is damaged, foreign or in use.

    `offset` is the byte where the trouble starts; None where it is not about a place in the file.
    """

    def __init__(self, path: Path, offset: int | None, reason: str) -> None:
        self.path, self.offset, self.reason = path, offset, reason
        where = str(path) if offset is None else f"{path} at byte {offset}"
        super().__init__(f"{where}: {reason}")


class UnknownEncodingError(ArchiveError):
    """The shard's packets may be whole, and no kernel that is installed here decodes them."""


class ShardGoneError(ArchiveError):
    """The shard was deleted (`max_gib`, ...) between the look at the folder and its opening."""


FORMAT = "asys.archive.sidecar/2"
_FORMATS = r"^asys\.archive\.sidecar/[12]$"
"""The first said nothing of times and steps."""


class SeqRange(BaseModel, extra="forbid", frozen=True):
    """First and last packet sequence number of one bus shard in a file (gaps are possible)."""

    source: int
    shard: int
    first_seq: int
    last_seq: int


class Sidecar(BaseModel, extra="forbid", frozen=True):
    """Counts of one shard. `bytes` is the file's size; `crc32c` covers all of it (None: unknown).

    last_ns: time of its newest packet, as in the column `timestamp`. first_step, last_step: host steps
    of its rows, the least and the largest. None: an earlier version wrote it, or it has no rows.
    encoded: its rows in the file are packets.
    """

    format: str = Field(FORMAT, pattern=_FORMATS)
    run_id: str
    hook: str
    rows: int = Field(ge=0)
    packets: int = Field(ge=0)
    batches: int = Field(ge=0)
    bytes: int = Field(ge=0)
    crc32c: int | None = None
    torn_bytes: int = Field(0, ge=0)
    ranges: list[SeqRange] = []
    closed: bool = True
    last_ns: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    encoded: bool = False

    @staticmethod
    def path_of(shard: Path) -> Path:
        return shard.with_suffix(".json")

    @classmethod
    def read(cls, shard: Path) -> Sidecar | None:
        """The sidecar of `shard`; None when it has none.

        Raises:
            ArchiveError: the file is not a sidecar.
        """
        path = cls.path_of(shard)
        try:
            raw = read_file(path, MAX_MODEL_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArchiveError(path, None, f"cannot be read ({error})") from error
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ArchiveError(path, None, f"{first['loc']}: {first['msg']}") from None

    def write(self, shard: Path, *, sync: bool) -> None:
        """Write it beside `shard`, atomically; `sync` also makes it survive a power cut.

        Raises:
            OSError: no space; nothing is left behind.
        """
        data = self.model_dump_json(indent=1).encode() + b"\n"
        replace_file(self.path_of(shard), data, sync=sync)


def sidecar_of_stored(shard: Path) -> Sidecar | None:
    """Of a shard that a store has and that need not be fetched for it; None: the shard is here, or has none.

    Raises:
        ArchiveError: as `Sidecar.read`.
    """
    return Sidecar.read(shard) if is_elsewhere(shard) else None


PACKET_ROWS = "rows"
"""The column of an encoded shard that says how many rows a packet has."""
TALLIED = ("source", "shard", "seq", "host_step", "timestamp")
"""Columns that a tally is made of."""


@dataclass(slots=True)
class Tally:
    """Running counts of a shard's rows and packets, from its record batches."""

    rows: int = 0
    packets: int = 0
    batches: int = 0
    ranges: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    last_ns: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    encoded: bool = False
    _last: tuple[int, int, int] | None = None

    def add(self, batch: Any) -> None:
        """Count one record batch; of its columns TALLIED are read."""
        source, shard, seq, step, time_ns = (batch.column(name).to_numpy() for name in TALLIED)
        self.batches += 1
        self.encoded = PACKET_ROWS in batch.schema.names
        self.rows += int(batch.column(PACKET_ROWS).to_numpy().sum()) if self.encoded else len(seq)
        if not len(seq):
            return
        low, high, newest = int(step.min()), int(step.max()), int(time_ns.view(np.int64).max())
        self.first_step = low if self.first_step is None else min(self.first_step, low)
        self.last_step = high if self.last_step is None else max(self.last_step, high)
        self.last_ns = newest if self.last_ns is None else max(self.last_ns, newest)
        starts = packet_starts(source, shard, seq)
        first = (int(source[0]), int(shard[0]), int(seq[0]))
        self.packets += len(starts) - (first == self._last)
        self._last = (int(source[-1]), int(shard[-1]), int(seq[-1]))
        source, shard, seq = source[starts], shard[starts], seq[starts]
        stream = source.astype(np.uint64) << np.uint64(16) | shard.astype(np.uint64)
        for value in np.unique(stream):
            part = seq[stream == value]
            key = (int(value) >> 16, int(value) & 0xFFFF)
            low, high = self.ranges.get(key, (int(part[0]), int(part[0])))
            self.ranges[key] = min(low, int(part.min())), max(high, int(part.max()))

    def sidecar(self, run_id: str, hook: str, nbytes: int, **more: Any) -> Sidecar:
        """The sidecar of a closed shard with these counts."""
        return Sidecar(
            run_id=run_id,
            hook=hook,
            rows=self.rows,
            packets=self.packets,
            batches=self.batches,
            bytes=nbytes,
            ranges=self.seq_ranges(),
            last_ns=self.last_ns,
            first_step=self.first_step,
            last_step=self.last_step,
            encoded=self.encoded,
            **more,
        )

    def seq_ranges(self) -> list[SeqRange]:
        return [
            SeqRange(source=source, shard=shard, first_seq=first, last_seq=last)
            for (source, shard), (first, last) in sorted(self.ranges.items())
        ]


def packet_starts(source: Any, shard: Any, seq: Any) -> Any:
    """Indices of the rows at which another packet begins (int64; non-empty 1-D key columns)."""
    changed = (seq[1:] != seq[:-1]) | (shard[1:] != shard[:-1]) | (source[1:] != source[:-1])
    return np.concatenate(([0], np.flatnonzero(changed) + 1))
