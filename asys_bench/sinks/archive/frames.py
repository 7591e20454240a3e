"""The frames of an Arrow IPC stream file: where each message starts and ends, by hopping headers.

    frame = u32 0xFFFFFFFF | i32 metadata bytes | metadata (flatbuffer Message) | body
    end   = u32 0xFFFFFFFF | i32 0

Only headers are read, with pread, so a shard of any size is walked in milliseconds, a file that is
being written can be walked too, and nothing is mapped that might be truncated. Sizes are untrusted:
each is checked against the file before it is used.

Torn or damaged? A frame that claims more bytes than the file has, or a tail of zeros (a crash of the
machine), is torn: the writer died. Anything else that does not parse is damage.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

CONTINUATION = 0xFFFFFFFF
END_OF_STREAM = struct.pack("<II", CONTINUATION, 0)
MAX_METADATA_BYTES = 16 << 20
_SCHEMA, _RECORD_BATCH = 1, 3
_MOST_PAIRS = 64
"""Of a record batch's own metadata; ours has one."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One record batch: bytes [start, end) of the file, its length and its rows as its header says.

    `rows` are `length` where a row of the batch is a row of the archive, and more where it is a packet.
    """

    start: int
    end: int
    length: int
    rows: int


@dataclass(slots=True)
class Frames:
    """What a walk found.

    data_end: end of the last whole message, before the end-of-stream marker; 0 without a schema.
    torn_rows: rows that the torn batch's header announced, None when even that is missing.
    damage: why the bytes at `data_end` are not a frame; None when they are merely torn or absent.
    """

    size: int
    schema_end: int = 0
    batches: list[Frame] = field(default_factory=list)
    data_end: int = 0
    ended: bool = False
    torn_rows: int | None = None
    damage: str | None = None

    @property
    def rows(self) -> int:
        return sum(frame.rows for frame in self.batches)

    @property
    def tail_bytes(self) -> int:
        """Bytes that belong to no whole message."""
        return self.size - self.data_end - (len(END_OF_STREAM) if self.ended else 0)


def walk(fd: int) -> Frames:
    """Find the frames of the file behind `fd`. Never raises for what the file holds."""
    found = Frames(size=os.fstat(fd).st_size)
    try:
        _walk(fd, found)
    except (struct.error, ValueError) as error:
        found.damage = str(error)
    return found


def _walk(fd: int, found: Frames) -> None:
    while found.data_end + 8 <= found.size:
        start = found.data_end
        marker, length = struct.unpack("<Ii", os.pread(fd, 8, start))
        if marker != CONTINUATION:
            if _is_zero(fd, start, found.size):
                return
            raise ValueError(f"no Arrow message here (marker {marker:#010x})")
        if length == 0:
            found.ended = True
            if start + 8 != found.size:
                raise ValueError("bytes follow the end-of-stream marker")
            return
        if not 0 < length <= MAX_METADATA_BYTES:
            raise ValueError(f"a message header of {length} bytes is not plausible")
        if start + 8 + length > found.size:
            return
        kind, body, length_of, rows = parse_message(os.pread(fd, length, start + 8))
        end = start + 8 + length + body
        if kind != (_RECORD_BATCH if found.schema_end else _SCHEMA):
            raise ValueError(f"message type {kind} does not belong here")
        if end > found.size:
            found.torn_rows = rows
            return
        if found.schema_end:
            found.batches.append(Frame(start, end, length_of, rows))
        else:
            found.schema_end = end
        found.data_end = end


def _is_zero(fd: int, start: int, end: int) -> bool:
    while start < end:
        piece = os.pread(fd, min(1 << 20, end - start), start)
        if not piece or piece.count(0) != len(piece):
            return False
        start += len(piece)
    return True


ROWS_KEY = b"rows"
"""Of a record batch's own metadata: the rows of the archive that it holds, as decimal digits."""


def parse_message(metadata: bytes) -> tuple[int, int, int, int]:
    """(message type, body bytes, length, rows) of an Arrow flatbuffer Message; the last two are 0 for a
    schema.

    Raises:
        ValueError, struct.error: the bytes are not such a message.
    """
    message = _Table(metadata, _unsigned(metadata, 0))
    kind = message.scalar(1, "<B", 0)
    body = message.scalar(3, "<q", 0)
    if body < 0:
        raise ValueError(f"a body of {body} bytes")
    length = rows = 0
    if kind == _RECORD_BATCH:
        length = message.table(2).scalar(0, "<q", 0)
        if length < 0:
            raise ValueError(f"a record batch of {length} rows")
        told = message.texts(4).get(ROWS_KEY, b"%d" % length)
        if not told.isdigit() or len(told) > 18:
            raise ValueError(f"a record batch that says it has {told[:80]!r} rows")
        rows = int(told)
    return kind, body, length, rows


def unpacked_bytes(frame: bytes) -> int:
    """What the body of a record batch takes once its buffers are decompressed.

    Raises:
        ValueError, struct.error: the bytes are not a whole frame of such a message.
    """
    (length,) = struct.unpack_from("<i", frame, 4)
    metadata, body = frame[8 : 8 + length], memoryview(frame)[8 + length :]
    batch = _Table(metadata, _unsigned(metadata, 0)).table(2)
    if not batch.has(3):
        return len(body)
    total = 0
    for offset, size in batch.structs(2, "<qq"):
        if size == 0:
            continue
        if size < 8 or not 0 <= offset <= len(body) - 8:
            raise ValueError("a buffer lies outside its message")
        (unpacked,) = struct.unpack_from("<q", body, offset)
        total += size - 8 if unpacked == -1 else unpacked
    return total


def buffers_of(metadata: bytes) -> tuple[list[tuple[int, int]], bool]:
    """((offset in the body, bytes) of every buffer of a record batch, whether they are compressed).

    Raises:
        ValueError, struct.error: the bytes are not the header of such a message.
    """
    batch = _Table(metadata, _unsigned(metadata, 0)).table(2)
    return [(offset, size) for offset, size in batch.structs(2, "<qq")], batch.has(3)


class _Table:
    """A flatbuffer table: bounds-checked access to its fields by position in the vtable."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        if position + 4 > len(data):
            raise ValueError("a table lies outside its message")
        (back,) = struct.unpack_from("<i", data, position)
        self._vtable = position - back
        if self._vtable < 0:
            raise ValueError("a vtable lies outside its message")
        (self._vtable_bytes,) = struct.unpack_from("<H", data, self._vtable)

    def _field(self, index: int) -> int | None:
        slot = 4 + 2 * index
        if slot + 2 > self._vtable_bytes:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + slot)
        return self._position + offset if offset else None

    def scalar(self, index: int, form: str, default: int) -> int:
        position = self._field(index)
        return (
            default if position is None else int(struct.unpack_from(form, self._data, position)[0])
        )

    def has(self, index: int) -> bool:
        return self._field(index) is not None

    def table(self, index: int) -> _Table:
        return _Table(self._data, self._target(index))

    def structs(self, index: int, form: str) -> Iterator[tuple[int, ...]]:
        """The elements of a vector of structs."""
        position = self._target(index)
        count, size = _unsigned(self._data, position), struct.calcsize(form)
        if position + 4 + count * size > len(self._data):
            raise ValueError("a vector lies outside its message")
        for number in range(count):
            yield struct.unpack_from(form, self._data, position + 4 + number * size)

    def texts(self, index: int) -> dict[bytes, bytes]:
        """A vector of tables of two strings, key and value; empty where it is missing."""
        if not self.has(index):
            return {}
        position = self._target(index)
        count = _unsigned(self._data, position)
        if count > _MOST_PAIRS:
            raise ValueError(f"a record batch with {count} notes")
        found = {}
        for number in range(count):
            at = position + 4 + 4 * number
            pair = _Table(self._data, at + _unsigned(self._data, at))
            found[pair._text(0)] = pair._text(1)
        return found

    def _text(self, index: int) -> bytes:
        position = self._target(index)
        end = position + 4 + _unsigned(self._data, position)
        if end > len(self._data):
            raise ValueError("a string lies outside its message")
        return self._data[position + 4 : end]

    def _target(self, index: int) -> int:
        position = self._field(index)
        if position is None:
            raise ValueError(f"field {index} of a table is missing")
        return position + _unsigned(self._data, position)


def _unsigned(data: bytes, position: int) -> int:
    return int(struct.unpack_from("<I", data, position)[0])
