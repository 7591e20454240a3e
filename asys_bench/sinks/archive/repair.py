"""Making a shard whole again after its writer died.

STEPS, each of which leaves a readable file if the repairer dies too
1. Lock the shard; a live writer holds that lock.
2. Walk its frames; check its batches.
3. Copy what follows the last good batch to `<shard>.torn`, and sync it.
4. Truncate, append the end-of-stream marker, sync.
5. Write the sidecar.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from asys_bench.sinks.archive.frames import END_OF_STREAM, Frames
from asys_bench.sinks.archive.read import (
    DAMAGE,
    ShardReport,
    open_shard,
    read_rows,
    read_schema,
    report,
    schema_hook,
    schema_run,
)
from asys_bench.sinks.archive.shard import write_all
from asys_bench.sinks.archive.sidecar import (
    PACKET_ROWS,
    TALLIED,
    ArchiveError,
    Tally,
    UnknownEncodingError,
)
from asys_bench.system.files import open_private, sync_folder
from asys_bench.system.files.locks import take_lock


def repair_shard(path: Path | str, *, thorough: bool = True) -> ShardReport:
    """Cut a torn or damaged tail off, end the stream and write the sidecar; nothing is destroyed.

    The report's `torn_bytes`, `torn_rows` and `damage` say what was cut, `torn_copy` where it went;
    rows and batches are those that stay. A file without a whole schema moves to `torn_copy` entirely.
    `thorough` decodes every batch; otherwise only the key columns are read, which takes milliseconds
    and suffices after a SIGKILL.

    Raises:
        ArchiveError: a live process writes the shard, or it is not a shard of this format.
        OSError: no space for the copy; the shard is as it was.
    """
    path = Path(path)
    with open_shard(path, os.O_RDWR) as (fd, frames):
        if not take_lock(fd):
            raise ArchiveError(path, None, "is being written by a live process")
        if not frames.schema_end:
            moved = _free_name(path)
            path.rename(moved)
            lost = report(path, "", frames)
            return replace(lost, damage=frames.damage or "no whole schema", torn_copy=moved)
        schema = read_schema(fd, path, frames)
        if thorough:
            _cut_at_bad_batch(fd, path, schema, frames)
        tally = _tally(fd, schema, frames)
        found = report(path, schema_hook(schema), frames)
        copy = _cut(fd, path, frames) if frames.tail_bytes else None
        if not frames.ended:
            write_all(fd, [memoryview(END_OF_STREAM)], frames.data_end)
        os.fsync(fd)
        size = frames.data_end + len(END_OF_STREAM)
        counts = tally.sidecar(schema_run(schema), found.hook, size, torn_bytes=found.torn_bytes)
        counts.write(path, sync=True)
        return replace(
            found,
            rows=tally.rows,
            batches=tally.batches,
            size_bytes=size,
            ended=True,
            closed=True,
            torn_copy=copy,
        )


def _drop_from(frames: Frames, index: int, reason: str) -> None:
    frames.data_end = frames.batches[index].start
    del frames.batches[index:]
    frames.ended, frames.damage = False, reason


def _cut_at_bad_batch(fd: int, path: Path, schema: Any, frames: Frames) -> None:
    for index, frame in enumerate(frames.batches):
        try:
            for _ in read_rows(fd, path, schema, frame):
                pass
        except UnknownEncodingError:
            continue
        except ArchiveError as error:
            _drop_from(frames, index, error.reason)
            return


def _tally(fd: int, schema: Any, frames: Frames) -> Tally:
    """Count the rows by a few of their columns; the lock makes it safe to map the file."""
    tally = Tally()
    if not frames.batches:
        return tally
    mapping = mmap.mmap(fd, frames.data_end, prot=mmap.PROT_READ)
    columns = [n for n, name in enumerate(schema.names) if name in (*TALLIED, PACKET_ROWS)]
    options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    stream = pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(mapping)), options=options)
    for index, frame in enumerate(frames.batches):
        try:
            batch = stream.read_next_batch()
            batch.validate(full=True)
            if batch.num_rows != frame.length:
                raise ValueError(f"{batch.num_rows} rows, header says {frame.length}")
            tally.add(batch)
        except (StopIteration, *DAMAGE) as error:
            _drop_from(frames, index, f"bad record batch ({error})")
            break
    return tally


def _cut(fd: int, path: Path, frames: Frames) -> Path:
    copy = _free_name(path)
    frames.ended = False
    partial = copy.with_name(f".{copy.name}.tmp")
    out = open_private(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        position = frames.data_end
        while position < frames.size:
            piece = os.pread(fd, min(1 << 20, frames.size - position), position)
            if not piece:
                break
            write_all(out, [memoryview(piece)], position - frames.data_end)
            position += len(piece)
        os.fsync(out)
        partial.rename(copy)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(out)
    sync_folder(path.parent)
    os.ftruncate(fd, frames.data_end)
    return copy


def _free_name(path: Path) -> Path:
    copy, count = path.with_name(f"{path.name}.torn"), 0
    while copy.exists():
        count += 1
        copy = path.with_name(f"{path.name}.torn.{count}")
    return copy
