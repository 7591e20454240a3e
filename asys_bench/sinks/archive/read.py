"""Reading one shard, trusting nothing: every batch is validated before it is handed out."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from asys_bench.sinks.archive.encoded import (
    check_encoded_schema,
    decoded_batches,
    is_encoded,
    packets_problem,
    rate_problem,
)
from asys_bench.sinks.archive.frames import Frame, Frames, unpacked_bytes, walk
from asys_bench.sinks.archive.layout import MAX_NAME_BYTES, check_schema
from asys_bench.sinks.archive.sidecar import ArchiveError, ShardGoneError
from asys_bench.system.files.below import open_file

DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, MemoryError, TypeError)
"""What pyarrow raises for bytes that are not what they claim to be."""
MOST_UNPACKED_BYTES, MOST_RATIO = 96 << 20, 16
"""A batch may decompress to more than the first only if its bytes are at least 1/16 of that."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The state of one shard. Sizes in bytes.

    torn_bytes: after the last whole record batch, what a killed writer left of its open one (or, of
    a repair, what was cut off). torn_rows: the rows it announced, None if not even that was written.
    ended: it has its end-of-stream marker. closed: it has a sidecar that says so.
    damage: why it is not a valid shard; None when it is. torn_copy: where a repair put the cut bytes.
    undecoded: why its packets could not be decoded here; they may be whole.
    """

    path: Path
    hook: str
    rows: int
    batches: int
    size_bytes: int
    torn_bytes: int = 0
    torn_rows: int | None = None
    ended: bool = False
    closed: bool = False
    damage: str | None = None
    torn_copy: Path | None = None
    undecoded: str | None = None

    @property
    def ok(self) -> bool:
        """Whole up to its end: nothing torn and nothing damaged (it may still be open)."""
        return self.damage is None and not self.torn_bytes


def read_shard(path: Path | str) -> tuple[Iterator[Any], ShardReport]:
    """The rows of a shard up to its tear, a record batch at a time, and what the walk found.

    Packets of an encoded shard are decoded: shards of both kinds give the same columns. Works on a shard
    that is being written: it ends with the last batch that was whole. The batches own their memory.

    Raises:
        ArchiveError: missing, foreign or damaged (also while iterating); repair it to read the rest.
    """
    path = Path(path)
    with opened(path) as (_, schema, frames):
        pass
    return _batches(path, schema, frames.batches), report(path, schema_hook(schema), frames)


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, Any, Frames]]:
    """The descriptor, schema and frames of a shard that is whole up to its tear.

    Raises:
        ArchiveError: as `read_shard`.
    """
    with open_shard(path) as (fd, frames):
        if frames.damage is not None:
            raise ArchiveError(path, frames.data_end, frames.damage)
        if not frames.schema_end:
            raise ArchiveError(path, 0, f"torn before its schema ends ({frames.size} bytes)")
        yield fd, read_schema(fd, path, frames), frames


def report(path: Path, hook: str, frames: Frames) -> ShardReport:
    """What a walk says about a shard, without its contents."""
    return ShardReport(
        path=path,
        hook=hook,
        rows=frames.rows,
        batches=len(frames.batches),
        size_bytes=frames.size,
        torn_bytes=frames.tail_bytes,
        torn_rows=frames.torn_rows,
        ended=frames.ended,
        damage=frames.damage,
    )


@contextmanager
def open_shard(path: Path, flags: int = os.O_RDONLY) -> Iterator[tuple[int, Frames]]:
    """The file's descriptor and its frames.

    Raises:
        ShardGoneError: there is no such file; ArchiveError: it cannot be opened.
    """
    with open_descriptor(path, flags) as fd:
        yield fd, walk(fd)


@contextmanager
def open_descriptor(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The file's descriptor, for frames that a walk has found before. Raises as `open_shard`."""
    fd = _open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _open(path: Path, flags: int = os.O_RDONLY) -> int:
    try:
        return open_file(path, flags)
    except FileNotFoundError as error:
        raise ShardGoneError(path, None, f"cannot be opened ({error.strerror})") from error
    except OSError as error:
        raise ArchiveError(path, None, f"cannot be opened ({error.strerror})") from error


def read_schema(fd: int, path: Path, frames: Frames) -> Any:
    """The shard's pyarrow schema.

    Raises:
        ArchiveError: it is not a schema of this format.
    """
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(os.pread(fd, frames.schema_end, 0)))
        (check_encoded_schema if is_encoded(schema) else check_schema)(schema, path)
    except ArchiveError:
        raise
    except DAMAGE as error:
        raise ArchiveError(path, 0, f"the schema does not parse ({_line(error)})") from None
    return schema


def schema_hook(schema: Any) -> str:
    return str(schema.metadata[b"hook"].decode())


def schema_run(schema: Any) -> str:
    return str(schema.metadata[b"run_id"].decode())


def read_batch(fd: int, path: Path, schema: Any, frame: Frame) -> Any:
    """One validated record batch as it was written, in memory of its own; see `read_rows`.

    Raises:
        ArchiveError: it is damaged, or the file changed meanwhile.
    """
    try:
        return parse_batch(_pread(fd, frame), path, schema, frame)
    except OSError as error:
        raise ArchiveError(path, frame.start, f"cannot be read ({error})") from None


def parse_batch(raw: Any, path: Path, schema: Any, frame: Frame) -> Any:
    """The validated record batch in the bytes `raw` of `frame`; it views them.

    Raises:
        ArchiveError: it is damaged.
    """
    try:
        _check_unpacking(raw)
        message = pa.ipc.read_message(pa.py_buffer(raw))
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        nulls = sum(column.null_count for column in batch.columns)
    except (struct.error, *DAMAGE) as error:
        raise ArchiveError(path, frame.start, f"bad record batch ({_line(error)})") from None
    if nulls:
        raise ArchiveError(path, frame.start, f"{nulls} nulls, but no column has any")
    if batch.num_rows != frame.length:
        raise ArchiveError(path, frame.start, f"{batch.num_rows} rows, header says {frame.length}")
    problem = packets_problem(batch, frame.rows) if is_encoded(schema) else _value_problem(batch)
    if problem is not None:
        raise ArchiveError(path, frame.start, problem)
    return batch


def read_rows(fd: int, path: Path, schema: Any, frame: Frame) -> Iterator[Any]:
    """The rows of one frame in record batches.

    Raises:
        ArchiveError: as `read_batch` and `rows_in`.
    """
    return rows_in(read_batch(fd, path, schema, frame), path, frame)


def rows_in(batch: Any, path: Path, frame: Frame) -> Iterator[Any]:
    """The rows of a validated record batch of `frame`: itself, or, where it holds packets, what they decode
    to, in parts.

    Raises:
        ArchiveError: a packet does not decode. UnknownEncodingError: no kernel here decodes them.
    """
    if is_encoded(batch.schema):
        return decoded_batches(batch, path, frame.start)
    return iter((batch,))


def _check_unpacking(raw: Any) -> None:
    """Raises ValueError: the batch is a decompression bomb."""
    unpacked = unpacked_bytes(raw)
    if unpacked > max(MOST_UNPACKED_BYTES, MOST_RATIO * len(raw)):
        raise ValueError(f"{len(raw)} bytes that unpack to {unpacked}")


def _value_problem(batch: Any) -> str | None:
    """What no archiver writes, and a reader would stumble over."""
    if not batch.num_rows:
        return None
    rate_N = batch.column("sampling_rate").to_numpy()
    if (wrong := rate_problem(rate_N)) is not None:
        return wrong
    for name in ("hook", "encoding"):
        longest = pc.max(pc.binary_length(batch.column(name))).as_py()
        if longest > MAX_NAME_BYTES:
            return f"a {name} of {longest} bytes"
    return None


def _pread(fd: int, frame: Frame) -> bytes:
    """One frame's bytes; a single pread returns at most 2 GiB."""
    pieces, start = [], frame.start
    while start < frame.end:
        piece = os.pread(fd, frame.end - start, start)
        if not piece:
            raise OSError(f"the file ends at {start}, inside a record batch")
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _batches(path: Path, schema: Any, frames: list[Frame]) -> Iterator[Any]:
    with open_descriptor(path) as fd:
        for frame in frames:
            yield from read_rows(fd, path, schema, frame)


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
