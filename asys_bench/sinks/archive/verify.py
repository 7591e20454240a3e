"""Checking every shard of a run against itself and its sidecar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from asys_bench.sinks.archive.read import (
    ShardReport,
    open_shard,
    opened,
    read_batch,
    report,
    rows_in,
    schema_hook,
)
from asys_bench.sinks.archive.reader import shard_paths
from asys_bench.sinks.archive.repair import repair_shard
from asys_bench.sinks.archive.sidecar import ArchiveError, Sidecar, Tally, UnknownEncodingError
from asys_bench.system.files import file_crc32c


def verify_archive(run_dir: Path | str, *, repair: bool = False) -> list[ShardReport]:
    """Read every shard in full; a report each, in reading order. `ok` shards are whole.

    A shard that is not closed and holds nothing torn is fine: it is being written, or its writer was
    killed between batches. With `repair`, shards that are torn, damaged or not closed and that no
    live process writes are repaired; their reports say what was cut off and where it is kept.

    Raises:
        ArchiveError: the run has no archive.
    """
    return [_verify(path, repair) for path in shard_paths(run_dir)]


def _verify(path: Path, repair: bool) -> ShardReport:
    readable = True
    try:
        found = check_shard(path)
    except ArchiveError as error:
        readable = False
        with open_shard(path) as (_, frames):
            found = replace(report(path, "", frames), damage=str(error))
    if not repair or (readable and found.ended and found.closed and not found.torn_bytes):
        return found
    try:
        done = repair_shard(path)
    except (ArchiveError, OSError) as error:
        if readable and found.damage is None:
            return found  # in use: a live writer's shard is judged by what it holds so far
        return replace(found, damage=f"{found.damage or 'torn'}; not repaired: {error}")
    return replace(done, damage=found.damage or done.damage)


def _read_all(path: Path, each: Callable[[Any], None] | None) -> tuple[ShardReport, Tally]:
    tally, undecoded = Tally(), None
    with opened(path) as (fd, schema, frames):
        found = report(path, schema_hook(schema), frames)
        for frame in frames.batches:
            batch = read_batch(fd, path, schema, frame)
            tally.add(batch)
            try:
                for rows in rows_in(batch, path, frame):
                    if each is not None:
                        each(rows)
            except UnknownEncodingError as error:
                undecoded = error.reason
    return replace(found, undecoded=undecoded), tally


def check_shard(path: Path, each: Callable[[Any], None] | None = None) -> ShardReport:
    """Read one shard in full; `damage` of the report says where its sidecar disagrees.

    each: called with every record batch of rows that can be decoded here.

    Raises:
        ArchiveError: the shard or the sidecar cannot be read.
    """
    found, tally = _read_all(path, each)
    sidecar = Sidecar.read(path)
    if sidecar is None:
        return found
    said = (sidecar.rows, sidecar.batches, sidecar.bytes, sidecar.hook)
    is_ = (found.rows, found.batches, found.size_bytes, found.hook)
    damage = None
    if sidecar.closed and said != is_:
        damage = f"{path}: its sidecar says (rows, batches, bytes, hook) = {said}, it has {is_}"
    elif sidecar.closed and (sidecar.packets, sidecar.ranges) != (
        tally.packets,
        tally.seq_ranges(),
    ):
        damage = f"{path}: its keys are not those that its sidecar lists"
    elif sidecar.closed and sidecar.crc32c not in (None, file_crc32c(path)):
        damage = f"{path}: its bytes do not match the crc32c of its sidecar"
    return replace(found, closed=sidecar.closed, damage=damage)
