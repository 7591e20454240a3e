"""Packets to record batches: values without a copy where one packet fills the batch, metadata repeated.

Several packets share a batch, and a column is one buffer, so their values are gathered (and widened,
in the same pass) into scratch memory that is reused from batch to batch. A single packet whose dtype
needs no change is written straight from the lease's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from asys_bench.contracts.packet import ActivationPacket, tensor_bytes
from asys_bench.contracts.preprocessor import Positions
from asys_bench.sinks.archive.layout import ARROW_OF, RowLayout

BATCH_BYTES = 64 << 20
"""A record batch holds at most about this many bytes of values, whatever `rows_per_batch` says."""
_SERIAL_ELEMENTS = 16384
HEADER: dict[str, Any] = {
    "source": np.uint32,
    "shard": np.uint16,
    "seq": np.uint64,
    "kind": np.uint8,
    "host_step": np.uint64,
    "weights_version": np.uint64,
    "sampling_rate": np.float32,
    "call_index": np.uint32,
    "microbatch": np.uint16,
    "token_position": np.int32,
    "text": np.uint8,
}
"""Fields of a packet that are columns as they are."""
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one packet: `rows` [n, width] starts at row `first` of it, or they are those at `places`."""

    packet: ActivationPacket
    encoding: str
    rows: torch.Tensor
    first: int
    places: Positions | None = None
    grid: str = ""
    """Leading dimensions of the captured tensor, such as 8x20x24."""

    def __len__(self) -> int:
        return self.rows.shape[0]


def split(
    pieces: Sequence[Piece],
    layout: RowLayout,
    rows_per_batch: int,
    batch_bytes: float = BATCH_BYTES,
) -> Iterator[list[Piece]]:
    """Group `pieces` into batches of at most `rows_per_batch` rows and about `batch_bytes`."""
    limit = max(1, min(rows_per_batch, int(batch_bytes) // layout.value_bytes))
    batch: list[Piece] = []
    room = limit
    for piece in pieces:
        start, count = 0, len(piece)
        if count < room:
            batch.append(piece)
            room -= count
            continue
        while start < count:
            taken = min(room, count - start)
            rows = piece.rows[start : start + taken]
            places = None if piece.places is None else piece.places[start : start + taken]
            first = piece.first + start
            batch.append(Piece(piece.packet, piece.encoding, rows, first, places, piece.grid))
            start, room = start + taken, room - taken
            if not room:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch


class BatchBuilder:
    """Makes record batches; one per archiver, because it owns the scratch memory.

    A batch views the scratch or the lease: write it before the next `build`, then drop it.
    """

    def __init__(self, wall_offset_ns: int, attempt: int = 0) -> None:
        self._wall_offset_ns, self._attempt = wall_offset_ns, attempt
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def build(self, pieces: Sequence[Piece], layout: RowLayout, schema: Any) -> Any:
        """The pyarrow RecordBatch of `pieces`, all of `layout`."""
        counts = np.array([len(piece) for piece in pieces])
        total = int(counts.sum())
        packets = [piece.packet for piece in pieces]
        header = header_columns(packets, self._wall_offset_ns, self._attempt)
        columns: dict[str, Any] = {name: np.repeat(of, counts) for name, of in header.items()}
        begins = np.cumsum(counts) - counts
        row = np.arange(total) - np.repeat(begins, counts)
        row += np.repeat(np.array([piece.first for piece in pieces], dtype=np.int64), counts)
        for begin, piece in zip(begins, pieces, strict=True):
            if piece.places is not None:
                row[begin : begin + len(piece)] = piece.places
        position = columns["token_position"].astype(np.int64)
        position = np.where(position >= 0, np.minimum(position + row, _INT32_MAX), -1)
        columns |= {
            "hook": pa.repeat(pa.scalar(layout.hook), total),
            "row": row.astype(np.uint32),
            "token_position": position.astype(np.int32),
            "encoding": _strings([piece.encoding for piece in pieces], counts),
            "grid": _strings([piece.grid for piece in pieces], counts),
        }
        values = self._values(pieces, layout, total)
        arrays = [values, *(columns[name] for name in schema.names[1:])]
        return pa.record_batch(arrays, schema=schema)

    def _values(self, pieces: Sequence[Piece], layout: RowLayout, total: int) -> Any:
        first = pieces[0].rows
        if len(pieces) == 1 and first.dtype == layout.stored and first.is_contiguous():
            rows = first
        else:
            rows = self._room(total * layout.value_bytes).view(layout.stored)
            rows = rows.view(total, layout.width)
            _gather(pieces, rows)
        if layout.stored is torch.bool:
            flat = pa.array(rows.reshape(-1).numpy())
        else:
            memory = pa.py_buffer(tensor_bytes(rows))
            flat = pa.Array.from_buffers(ARROW_OF[layout.stored], rows.numel(), [None, memory])
        return pa.FixedSizeListArray.from_arrays(flat, layout.width)

    def _room(self, nbytes: int) -> torch.Tensor:
        if self._scratch.numel() < nbytes:
            self._scratch = torch.empty(nbytes, dtype=torch.uint8)
        return self._scratch[:nbytes]


def header_columns(
    packets: Sequence[ActivationPacket], wall_offset_ns: int, attempt: int
) -> dict[str, Any]:
    """What packets' headers say, a value per packet, in the dtypes of the columns."""
    columns = {
        name: np.array([getattr(packet, name) for packet in packets], dtype=dtype)
        for name, dtype in HEADER.items()
    }
    times = [min(packet.timestamp_ns + wall_offset_ns, _INT64_MAX) for packet in packets]
    columns["timestamp"] = np.array(times, dtype=np.int64).view("datetime64[ns]")
    columns["attempt"] = np.full(len(packets), attempt, np.uint16)
    return columns


def _gather(pieces: Sequence[Piece], target: torch.Tensor) -> None:
    """Copy all rows into `target` [n, width] of the stored dtype, on this thread alone.

    torch wakes its pool for 32768 elements and more, which made the copy 100 times slower on a
    machine whose cores were busy with the host; so numpy copies, and torch converts in small steps.
    """
    out = target.numpy()
    begin = 0
    for piece in pieces:
        source, end = piece.rows, begin + len(piece)
        if source.dtype == target.dtype:
            out[begin:end] = source.numpy()
        elif source.dtype is torch.bfloat16 and target.dtype is torch.float32:
            bits = out[begin:end].view(np.uint32)  # a bfloat16 is the upper half of a float32
            bits[...] = source.view(torch.int16).numpy().view(np.uint16)
            np.left_shift(bits, 16, out=bits)
        else:
            flat, into = source.reshape(-1), target[begin:end].view(-1)
            for start in range(0, flat.numel(), _SERIAL_ELEMENTS):
                step = slice(start, start + _SERIAL_ELEMENTS)
                into[step].copy_(flat[step])
        begin = end


def _strings(names: Sequence[str], counts: Any) -> Any:
    if len(set(names)) == 1:
        return pa.repeat(pa.scalar(names[0]), int(counts.sum()))
    return pa.array(names).take(pa.array(np.repeat(np.arange(len(names)), counts)))
