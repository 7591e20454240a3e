"""Encoded shards (`values: encoded`): a row of the file is a packet, as it travelled.

`payload` holds its bytes, `params` and `shape` what its decoder needs, the other columns its header, once
a packet instead of once a row (88 bytes). What no packet of a shard differs in is in the schema's
metadata: hook, dtype, width of the decoded rows, encoding. Where the payload is nothing but the tensor's
own elements, `payload` is a list of them, in the schema's dtype: bfloat16 as uint16 and float8 as uint8
bits, bool as uint8, complex64 as pairs of float32. Else it is binary.

Readers get rows all the same: `decoded_batches` makes of a record batch of packets the record batches that
`values: keep` would have written. It decodes with the very decoder that a live trainer uses, so every value
is equal to what that saw, bit by bit. The record batch's own metadata says how many rows its packets have, so
that rows are counted from headers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from asys_bench.contracts.packet import (
    DTYPES,
    MAX_DIM,
    MAX_NDIM,
    NO_PARAMS,
    ActivationPacket,
    Kind,
    PacketError,
)
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.sinks.archive.layout import (
    ENCODED_FORMAT,
    MAX_NAME_BYTES,
    METADATA_COLUMNS,
    RowLayout,
    about_shard,
    described,
    rows_of,
    stored_dtype,
)
from asys_bench.sinks.archive.rows import (
    BATCH_BYTES,
    HEADER,
    BatchBuilder,
    Piece,
    header_columns,
    split,
)
from asys_bench.sinks.archive.sidecar import PACKET_ROWS, ArchiveError, UnknownEncodingError
from asys_bench.sinks.decoding import decoder_of

_NOT_STORED = ("hook", "row", "encoding", "grid")
"""Columns of a row that the schema's metadata has, or that the decoder gives."""
COLUMNS: tuple[tuple[str, Any], ...] = (
    *((name, kind) for name, kind in METADATA_COLUMNS if name not in _NOT_STORED),
    (PACKET_ROWS, pa.uint32()),
    ("shape", pa.list_(pa.uint32())),
    ("params", pa.binary()),
)
_ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: pa.float32(),
    torch.float64: pa.float64(),
    torch.float16: pa.float16(),
    torch.bfloat16: pa.uint16(),
    torch.int8: pa.int8(),
    torch.uint8: pa.uint8(),
    torch.int16: pa.int16(),
    torch.int32: pa.int32(),
    torch.int64: pa.int64(),
    torch.bool: pa.uint8(),
    torch.float8_e4m3fn: pa.uint8(),
    torch.float8_e5m2: pa.uint8(),
    torch.complex64: pa.float32(),
}
_DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
MOST_ROWS = 65536
"""Of a decoded record batch."""
_NO_PACKET = (PacketError, RuntimeError, ValueError, LookupError, MemoryError, TypeError)
"""What a decoder raises for bytes that are no packet; torch raises RuntimeError for shapes."""
DECODED_BYTES = 16 << 20
"""About this many bytes of values are decoded at a time."""


@dataclass(frozen=True)
class PacketLayout:
    """What all packets of one shard share. width: values per decoded row. elements: see above."""

    hook: str
    width: int
    dtype: torch.dtype
    encoding: str
    elements: bool

    def schema(self, run_id: str) -> Any:
        """The pyarrow schema, with the constants of the shard in its metadata."""
        payload = pa.large_list(_ELEMENTS[self.dtype]) if self.elements else pa.large_binary()
        fields = [pa.field("payload", payload), *(pa.field(*column) for column in COLUMNS)]
        about = about_shard(ENCODED_FORMAT, run_id, self.hook, self.dtype, self.width)
        return pa.schema(fields, metadata={**about, "encoding": self.encoding})


def is_encoded(schema: Any) -> bool:
    """Whether the rows of a shard of this schema are packets."""
    return bool((schema.metadata or {}).get(b"format") == ENCODED_FORMAT.encode())


def check_encoded_schema(schema: Any, path: Path) -> None:
    """Raises ArchiveError: the schema is not one that `PacketLayout.schema` makes."""
    said = described(schema, path, "encoding")
    dtype, width = _DTYPE_OF.get(said["dtype"]), said["row_shape"]
    number = int(width) if width.isascii() and width.isdigit() and len(width) <= 10 else 0
    if dtype is None or not 0 < number <= 2 * MAX_DIM:
        raise ArchiveError(
            path, 0, f"no packets of dtype {said['dtype'][:80]!r}, {width[:80]!r} wide"
        )
    if max(len(said["hook"]), len(said["encoding"])) > MAX_NAME_BYTES:
        raise ArchiveError(path, 0, f"a hook or encoding of more than {MAX_NAME_BYTES} characters")
    actual = [(field.name, field.type) for field in schema]
    payloads = (pa.large_list(_ELEMENTS[dtype]), pa.large_binary())
    if actual[1:] != list(COLUMNS) or actual[0] not in [("payload", one) for one in payloads]:
        raise ArchiveError(path, 0, f"columns are not those of {ENCODED_FORMAT}: {actual}")


def is_elements(packet: ActivationPacket, tensor: torch.Tensor) -> bool:
    """Whether the payload of `packet` is the elements of what it decodes to, and nothing else."""
    start = np.frombuffer(packet.payload, np.uint8).ctypes.data if packet.payload.nbytes else 0
    same = packet.payload.nbytes == tensor.numel() * tensor.element_size()
    return same and tensor.is_contiguous() and tensor.data_ptr() == start


def packet_batches(
    packets: Sequence[Piece], batch_bytes: float = BATCH_BYTES
) -> Iterator[list[Piece]]:
    """Group packets into batches of about `batch_bytes`; a packet is in one of them."""
    batch: list[Piece] = []
    taken = 0
    for piece in packets:
        if batch and taken + piece.packet.payload.nbytes > batch_bytes:
            yield batch
            batch, taken = [], 0
        batch.append(piece)
        taken += piece.packet.payload.nbytes
    if batch:
        yield batch


def build_packets(
    pieces: Sequence[Piece], layout: PacketLayout, schema: Any, wall_offset_ns: int, attempt: int
) -> Any:
    """The pyarrow RecordBatch of whole packets. That of one packet views its payload."""
    packets = [piece.packet for piece in pieces]
    columns: dict[str, Any] = {
        **header_columns(packets, wall_offset_ns, attempt),
        PACKET_ROWS: np.array([len(piece) for piece in pieces], dtype=np.uint32),
        "shape": pa.array([packet.shape for packet in packets], type=pa.list_(pa.uint32())),
        "params": pa.array(
            [b"" if p.params == NO_PARAMS else bytes(p.params) for p in packets], type=pa.binary()
        ),
    }
    views = [packet.payload for packet in packets]
    data = views[0] if len(views) == 1 else b"".join(views)
    kind = schema.field("payload").type
    size = kind.value_type.bit_width // 8 if layout.elements else 1
    ends = np.cumsum([0, *(view.nbytes // size for view in views)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends)]
    if layout.elements:
        length = int(ends[-1])
        inner = pa.Array.from_buffers(kind.value_type, length, [None, pa.py_buffer(data)])
        payload = pa.Array.from_buffers(kind, len(views), buffers, children=[inner])
    else:
        payload = pa.Array.from_buffers(kind, len(views), [*buffers, pa.py_buffer(data)])
    return pa.record_batch([payload, *(columns[name] for name, _ in COLUMNS)], schema=schema)


def rate_problem(rate_N: npt.NDArray[Any]) -> str | None:
    """A sampling rate that none can be."""
    wrong_N = rate_N[~((rate_N > 0) & (rate_N <= 1))]
    return f"sampling_rate {wrong_N[0]} is not in (0, 1]" if len(wrong_N) else None


def packets_problem(batch: Any, rows: int) -> str | None:
    """What no archiver writes in a record batch of packets whose header says it has `rows` rows."""
    said = int(batch.column(PACKET_ROWS).to_numpy().sum(dtype=np.uint64))
    if said != rows:
        return f"packets of {said} rows, header says {rows}"
    if not batch.num_rows:
        return None
    if (wrong := rate_problem(batch.column("sampling_rate").to_numpy())) is not None:
        return wrong
    if int(pc.max(pc.list_value_length(batch.column("shape"))).as_py()) > MAX_NDIM:
        return f"a shape of more than {MAX_NDIM} dimensions"
    if int(batch.column("kind").to_numpy().max()) >= len(Kind):
        return "a kind that no packet has"
    lengths = set(pc.unique(pc.binary_length(batch.column("params"))).to_pylist())
    if not lengths <= {0, len(NO_PARAMS)}:
        return f"parameters of {sorted(lengths)} bytes"
    if len(np.unique(batch.column("attempt").to_numpy())) > 1:
        return "packets of several attempts"
    return None


def decoded_batches(batch: Any, path: Path, offset: int) -> Iterator[Any]:
    """The rows of a valid record batch of packets, as `RowLayout` has them, about DECODED_BYTES at a time.

    path, offset: where it is, for errors.

    Raises:
        ArchiveError: a packet does not decode to what its shard says. UnknownEncodingError: no kernel here
            decodes it.
    """
    said = described(batch.schema, path, "encoding")
    encoding, dtype, width = said["encoding"], _DTYPE_OF[said["dtype"]], int(said["row_shape"])
    try:
        decoder = decoder_of(encoding)
    except PacketError as error:
        raise UnknownEncodingError(path, offset, str(error)) from None
    layout = RowLayout(said["hook"], width, dtype, stored_dtype(dtype, None))
    schema = layout.schema(said["run_id"])
    attempt = int(batch.column("attempt")[0].as_py()) if batch.num_rows else 0

    def built(pieces: list[Piece]) -> Iterator[Any]:
        for part in split(pieces, layout, MOST_ROWS):
            yield BatchBuilder(0, attempt).build(part, layout, schema)

    waiting: list[Piece] = []
    taken = 0
    rows_N = batch.column(PACKET_ROWS).to_pylist()
    for packet, rows in zip(packets_in(batch), rows_N, strict=True):
        try:
            piece = _decoded(packet, encoding, decoder)
        except _NO_PACKET as error:
            key = (packet.source, packet.shard, packet.seq)
            raise ArchiveError(path, offset, f"packet {key} does not decode: {error}") from None
        shape = (0, width) if piece is None else tuple(piece.rows.shape)
        if piece is None or shape != (rows, width):
            why = f"packet {packet.seq} decodes to {shape}, its shard says {(rows, width)}"
            raise ArchiveError(path, offset, why)
        waiting.append(piece)
        taken += rows * layout.value_bytes
        if taken >= DECODED_BYTES:
            yield from built(waiting)
            waiting, taken = [], 0
    yield from built(waiting)


def _decoded(packet: ActivationPacket, encoding: str, decoder: Preprocessor) -> Piece | None:
    rows_ND = rows_of(decoder.decode(packet))
    if rows_ND is None:
        return None
    grid, places = "x".join(map(str, decoder.grid(packet))), decoder.rows(packet)
    if places is not None and len(places) != len(rows_ND):
        raise PacketError(f"{len(places)} places for {len(rows_ND)} rows")
    return Piece(packet, encoding, rows_ND, 0, places, grid)


def packets_in(batch: Any) -> Iterator[ActivationPacket]:
    """The packets of a valid record batch. Payloads are copies; times are those of the wall clock; ids of
    names are 0."""
    dtype = _DTYPE_OF[batch.schema.metadata[b"dtype"].decode()]
    payload = batch.column("payload")
    buffers = payload.buffers()
    starts = np.frombuffer(buffers[1], np.int64, len(payload) + 1, 8 * payload.offset)
    size = 1 if pa.types.is_large_binary(payload.type) else payload.type.value_type.bit_width // 8
    data = np.frombuffer(buffers[-1] if buffers[-1] is not None else b"", np.uint8)
    column = {name: batch.column(name).to_numpy().tolist() for name in HEADER}
    times = batch.column("timestamp").to_numpy().view(np.int64).tolist()
    shapes, params = batch.column("shape").to_pylist(), batch.column("params").to_pylist()
    for at in range(batch.num_rows):
        header = {name: values[at] for name, values in column.items()}
        header["kind"] = Kind(header["kind"])
        bytes_ = data[size * int(starts[at]) : size * int(starts[at + 1])].copy()
        yield ActivationPacket(
            **header,
            hook_id=0,
            encoding_id=0,
            dtype=dtype,
            shape=tuple(shapes[at]),
            timestamp_ns=times[at],
            params=params[at] or NO_PARAMS,
            crc=None,
            payload=bytes_.data,
        )
