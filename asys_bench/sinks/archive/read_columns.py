"""Some columns of a record batch, without reading the bytes of the others.

Keys of rows are 30 to 90 bytes each beside values of hundreds or thousands. What is read is laid out as it
lies in the file, in memory that is otherwise untouched, so Arrow's own reader finds each buffer at its place.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from asys_bench.sinks.archive.frames import Frame, buffers_of
from asys_bench.sinks.archive.read import DAMAGE, MOST_RATIO, MOST_UNPACKED_BYTES
from asys_bench.sinks.archive.sidecar import ArchiveError


def read_columns(fd: int, path: Path, schema: Any, frame: Frame, names: Sequence[str]) -> Any:
    """One validated record batch with those of its columns that are in `names`.

    Raises:
        ArchiveError: it is damaged, or the file changed meanwhile.
    """
    fields = [index for index, name in enumerate(schema.names) if name in names]
    front = schema.serialize().to_pybytes()
    memory = mmap.mmap(-1, len(front) + frame.end - frame.start)
    view = memoryview(memory)
    view[: len(front)] = front
    try:
        with view[len(front) :] as message:
            _fill(fd, frame, schema, fields, message)
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        batch = pa.ipc.open_stream(pa.py_buffer(memory), options=options).read_next_batch()
        batch.validate(full=True)
        nulls = sum(column.null_count for column in batch.columns)
    except (struct.error, StopIteration, *DAMAGE) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ArchiveError(path, frame.start, f"bad record batch ({reason})") from None
    finally:
        view.release()
    if nulls or batch.num_rows != frame.length:
        raise ArchiveError(
            path, frame.start, f"{nulls} nulls, {batch.num_rows} of {frame.length} rows"
        )
    return batch


def _fill(fd: int, frame: Frame, schema: Any, fields: Sequence[int], message: memoryview) -> None:
    """Read the header and the buffers of the fields into their places."""
    _read(fd, frame, message, 0, 8)
    (length,) = struct.unpack_from("<i", message, 4)
    _read(fd, frame, message, 8, 8 + length)
    found, compressed = buffers_of(bytes(message[8 : 8 + length]))
    counts = [_buffers_of_type(field.type) for field in schema]
    if sum(counts) != len(found):
        raise ValueError(f"{len(found)} buffers, and its columns have {sum(counts)}")
    for index in fields:
        first = sum(counts[:index])
        for offset, size in found[first : first + counts[index]]:
            start = 8 + length + offset
            if offset < 0 or size < 0 or start + size > len(message):
                raise ValueError("a buffer lies outside its message")
            _read(fd, frame, message, start, start + size)
            if compressed and size >= 8:
                (unpacked,) = struct.unpack_from("<q", message, start)
                if unpacked > max(MOST_UNPACKED_BYTES, MOST_RATIO * size):
                    raise ValueError(f"{size} bytes that unpack to {unpacked}")


def _read(fd: int, frame: Frame, message: memoryview, start: int, stop: int) -> None:
    while start < stop:
        count = os.preadv(fd, [message[start:stop]], frame.start + start)
        if not count:
            raise OSError(f"the file ends inside a record batch, at {frame.start + start}")
        start += count


def _buffers_of_type(kind: Any) -> int:
    """Validity and values, of a list its child's too, of text offsets too."""
    if pa.types.is_fixed_size_list(kind):
        return 1 + _buffers_of_type(kind.value_type)
    return 3 if pa.types.is_string(kind) else 2
