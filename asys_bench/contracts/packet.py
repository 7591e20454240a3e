"""The packet: what one hook call puts on the bus, and its fixed binary header.

A packet is a 128-byte little-endian header followed by the raw payload. Every backend moves exactly
these bytes, so a packet written by one backend can be decoded by any reader. There is no pickle.

Header, version 1 (offset, type, field)::

      0 u32 magic ("ASYP")      48 u32 source (rank)        68 f32 sampling_rate (0, 1]
      4 u16 version             52 u16 shard                72 u32 crc32c of the payload
      6 u16 flags (bit 0: crc)  54 u16 hook_id              76 i32 token_position (-1: none)
      8 u64 seq (per shard)     56 u16 encoding_id          80 u32[8] shape
     16 u64 host_step           58 u8  kind                112 u8[16] encoding parameters
     24 u64 timestamp_ns        59 u8  dtype
     32 u64 weights_version     60 u8  ndim
     40 u64 payload_bytes       61 u8  text (0: none)
                                62 u16 microbatch
                                64 u32 call_index

``hook_id`` and ``encoding_id`` index the bus's table of interned names (`contracts.bus.NameTable`);
encoding 0 is always "identity". ``timestamp_ns`` is CLOCK_MONOTONIC; a run records the offset to
wall time once. ``text`` n > 0: the rows are the tokens, padding left out, of the n-th text of this
(host step, microbatch), in order; 0: nothing is said. ``dtype`` and ``shape`` describe the *decoded*
tensor; the payload's own form is the encoding's business.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias, cast

import crc32c as _crc32c
import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts.tensor_memory import memory_fault

MAGIC = 0x50595341  # b"ASYP" little-endian
VERSION = 1
HEADER_BYTES = 128
MAX_NDIM = 8
MAX_DIM = 2**32 - 1
FLAG_CRC = 1
CONSTANT_MICROBATCH = (1 << 16) - 1
"""The `microbatch` of the constant evaluation batch (`observation.constant`)."""
NO_TOKEN_POSITION = -1
NO_PARAMS = bytes(16)
NO_TEXT = 0
MAX_TEXT = 254
"""Texts of one (host step, microbatch) that have a number; 255 is the readers' for "not recorded"."""

HEADER = struct.Struct("<IHHQQQQQIHHHBBBBHIfIi8I16s")
assert HEADER.size == HEADER_BYTES
HEADERS = np.dtype(
    [
        ("magic", "<u4"), ("version", "<u2"), ("flags", "<u2"), ("seq", "<u8"), ("host_step", "<u8"),
        ("timestamp_ns", "<u8"), ("weights_version", "<u8"), ("payload_bytes", "<u8"), ("source", "<u4"),
        ("shard", "<u2"), ("hook_id", "<u2"), ("encoding_id", "<u2"), ("kind", "u1"), ("dtype", "u1"),
        ("ndim", "u1"), ("text", "u1"), ("microbatch", "<u2"), ("call_index", "<u4"),
        ("sampling_rate", "<f4"), ("crc", "<u4"), ("token_position", "<i4"), ("shape", "<u4", (8,)),
        ("params", "V16"),
    ]
)  # fmt: skip
"""The same for numpy."""
assert HEADERS.itemsize == HEADER_BYTES
_pack_into, _unpack_from = HEADER.pack_into, HEADER.unpack_from
_PADDING = tuple((0,) * (MAX_NDIM - ndim) for ndim in range(MAX_NDIM + 1))
_HOOK_AND_KIND = struct.Struct("<HxxB")
Places: TypeAlias = "npt.NDArray[np.int64]"
"""[n, 2], C-contiguous: of frames in a batch."""


class PacketError(ValueError):
    """The bytes are not a packet of this version, or are damaged."""


class Kind(IntEnum):
    """What the hook captured (append only)."""

    ACTIVATION = 0
    """A module's output."""
    INPUT = 1
    """What a module was called with."""
    GRADIENT = 2
    """d(loss)/d(output)."""
    INPUT_GRADIENT = 3
    """d(loss)/d(input), through the module alone."""
    PARAMETER_GRADIENT = 4
    """d(loss)/d(parameter) as it stands in `.grad` after a backward pass: accumulated."""
    PARAMETER = 5
    """A parameter, or some rows of it."""
    UPDATE = 6
    """What has been added to a parameter since the round before."""


_KINDS = tuple(Kind)


DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
)
"""Dtypes a packet can name; the index is the code in the header (append only)."""
DTYPE_CODE: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(DTYPES)}

_CARRIER: dict[int, np.dtype[np.generic]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
    8: np.dtype(np.int64),
}
"""numpy has no bfloat16 or float8: bytes travel as integers of the same width, torch views them back."""


_NUMPY_KNOWS = frozenset(DTYPES) - {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}


class PacketMeta(NamedTuple):
    """What the hook knows about a packet; the producer adds shard, source, sequence and checksum."""

    hook_id: int
    kind: int
    dtype: int
    shape: tuple[int, ...]
    host_step: int = 0
    timestamp_ns: int = 0
    weights_version: int = 0
    encoding_id: int = 0
    params: bytes = NO_PARAMS
    sampling_rate: float = 1.0
    call_index: int = 0
    microbatch: int = 0
    token_position: int = NO_TOKEN_POSITION
    text: int = NO_TEXT


def pack_header_into(
    buffer: bytearray | memoryview,
    offset: int,
    meta: PacketMeta,
    *,
    seq: int,
    shard: int,
    source: int,
    payload_bytes: int,
    crc: int | None = None,
) -> None:
    """Write the 128-byte header of `meta` at `offset`.

    Raises:
        PacketError: more than 8 dimensions, or a field that no header can hold.
    """
    try:
        (
            hook_id, kind, dtype, shape, host_step, timestamp_ns, weights_version, encoding_id,
            params, sampling_rate, call_index, microbatch, token_position, text,
        ) = meta  # fmt: skip
        _pack_into(
            buffer, offset, MAGIC, VERSION, 0 if crc is None else FLAG_CRC, seq, host_step,
            timestamp_ns, weights_version, payload_bytes, source, shard, hook_id, encoding_id, kind,
            dtype, len(shape), text, microbatch, call_index & 0xFFFFFFFF, sampling_rate, crc or 0,
            token_position, *shape, *_PADDING[len(shape)], params,
        )  # fmt: skip
    except (struct.error, TypeError, ValueError, IndexError, OverflowError) as error:
        if isinstance(meta, PacketMeta) and len(meta.shape) > MAX_NDIM:
            raise PacketError(
                f"shape {meta.shape} has {len(meta.shape)} dimensions; a packet holds at most {MAX_NDIM}"
            ) from error
        raise PacketError(f"a header field is out of range ({error}): {meta}") from error


@dataclass(frozen=True, slots=True)
class ActivationPacket:
    """One packet as a consumer sees it.

    `payload` is a view into memory that the lease owns: it (and every array or tensor made from it)
    must be dropped before the lease is left. Copy what outlives the lease.
    """

    seq: int
    source: int
    shard: int
    hook_id: int
    kind: Kind
    dtype: torch.dtype
    shape: tuple[int, ...]
    host_step: int
    timestamp_ns: int
    weights_version: int
    encoding_id: int
    params: bytes
    sampling_rate: float
    call_index: int
    microbatch: int
    token_position: int
    crc: int | None
    payload: memoryview
    text: int = NO_TEXT

    @classmethod
    def unpack(cls, frame: memoryview) -> ActivationPacket:
        """Decode a frame (header + payload). The header is treated as untrusted.

        Raises:
            PacketError: wrong magic or version, unknown dtype or kind, or sizes that do not add up.
        """
        if len(frame) < HEADER_BYTES:
            raise PacketError(f"{len(frame)} bytes are too few for a {HEADER_BYTES}-byte header")
        return cls.from_parts(frame[:HEADER_BYTES], frame[HEADER_BYTES:])

    @classmethod
    def from_parts(
        cls, header: bytes | bytearray | memoryview, payload: memoryview, at: int = 0
    ) -> ActivationPacket:
        """Decode the header at `at` and the payload that lies elsewhere (ring backends).

        Raises:
            PacketError: as `unpack`.
        """
        try:
            (
                magic, version, flags, seq, host_step, timestamp_ns, weights_version, payload_bytes,
                source, shard, hook_id, encoding_id, kind, dtype, ndim, text, microbatch,
                call_index, sampling_rate, crc, token_position, *rest,
            ) = _unpack_from(header, at)  # fmt: skip
        except struct.error as error:
            raise PacketError(f"no {HEADER_BYTES}-byte header at {at}: {error}") from error
        if magic != MAGIC or version != VERSION:
            raise PacketError(
                f"magic {magic:#010x} version {version}; expected {MAGIC:#010x} version {VERSION}"
            )
        if ndim > MAX_NDIM or dtype >= len(DTYPES) or kind >= len(_KINDS):
            raise PacketError(f"ndim {ndim}, dtype code {dtype} or kind {kind} is unknown")
        if payload_bytes != payload.nbytes:
            raise PacketError(
                f"header says {payload_bytes} payload bytes, frame has {payload.nbytes}"
            )
        packet = _Unfrozen(
            seq, source, shard, hook_id, _KINDS[kind], DTYPES[dtype], tuple(rest[:ndim]), host_step,
            timestamp_ns, weights_version, encoding_id, rest[MAX_NDIM], sampling_rate, call_index,
            microbatch, token_position, crc if flags & FLAG_CRC else None, payload, text,
        )  # fmt: skip
        packet.__class__ = cls
        return cast(ActivationPacket, packet)

    @property
    def is_constant(self) -> bool:
        """Of the constant evaluation batch: nothing is to be learnt from it."""
        return self.microbatch == CONSTANT_MICROBATCH

    def verify(self) -> bool:
        """True when no checksum was asked for or the payload matches it."""
        return self.crc is None or checksum(self.payload) == self.crc

    def raw_tensor(self) -> torch.Tensor:
        """The payload as `dtype[shape]`, zero-copy; only for identity-encoded packets.

        Raises:
            PacketError: payload bytes do not match dtype and shape.
        """
        return tensor_view(self.payload, self.dtype, self.shape)


_Unfrozen: Callable[..., Any] = make_dataclass(
    "_Unfrozen", [(field.name, field.type) for field in fields(ActivationPacket)], slots=True
)
"""The same fields. A frozen dataclass's own constructor goes through `object.__setattr__` for each of
them, 1.9 us in all; to make one of these and change its class takes 0.3."""
set_payload: Callable[[ActivationPacket, memoryview], None] = vars(ActivationPacket)[
    "payload"
].__set__
"""Puts a fresh view in place of one that a refused release closed."""


def checksum(payload: memoryview | bytes | bytearray) -> int:
    """CRC-32C (Castagnoli) of the payload."""
    return int(_crc32c.crc32c(payload))


def tensor_view(
    payload: memoryview, dtype: torch.dtype, shape: tuple[int, ...], *, offset: int = 0
) -> torch.Tensor:
    """A torch view of raw bytes that keeps their owner's buffer exported while any tensor of it lives.

    numpy holds a memoryview of the owner and torch holds the numpy array, so the lease can see the
    view and refuse to reuse the memory (torch.frombuffer drops the export and would hide it).

    Raises:
        PacketError: the payload is too short for `dtype` and `shape`.
    """
    itemsize = dtype.itemsize
    count = 1
    for dim in shape:
        count *= dim
    if payload.nbytes - offset < count * itemsize:
        raise PacketError(
            f"{payload.nbytes - offset} payload bytes cannot hold {dtype} of shape {shape}"
        )
    if count == 0:
        try:
            return torch.empty(shape, dtype=dtype)
        except RuntimeError as error:  # (0, 2**32 - 1, 2**32 - 1): no memory, but strides overflow
            raise PacketError(f"no tensor has shape {shape}: {error}") from error
    array = np.frombuffer(payload, dtype=_CARRIER[itemsize], count=count, offset=offset)
    if not array.flags.writeable:
        # torch only warns on read-only memory. The mapping itself is what stops a write (SIGSEGV),
        # so the flag is lifted on this view alone and the tensor is documented as read-only.
        array = _writable_alias(array)
    return torch.from_numpy(array).view(dtype).reshape(shape)


class _Alias:
    """An `__array_interface__` holder that keeps the original array (and so the export) alive."""

    def __init__(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        self._owner = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _writable_alias(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.asarray(_Alias(array))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, zero-copy, any dtype.

    Raises:
        PacketError: the tensor is not contiguous, not dense, not on the CPU, or its memory is gone.
    """
    if not tensor.is_cpu or not tensor.is_contiguous():
        raise PacketError(f"needs a contiguous CPU tensor, got {tensor.device}, {tensor.stride()}")
    if tensor.numel() == 0:
        return memoryview(b"")
    fault = memory_fault(tensor)
    if fault is not None:
        raise PacketError(fault)
    if tensor.requires_grad or type(tensor) is not torch.Tensor:
        tensor = tensor.detach()
    if tensor.dtype not in _NUMPY_KNOWS:
        tensor = tensor.reshape(-1).view(torch.uint8)
    return tensor.numpy().data.cast("B")


def headers_of(packets: Sequence[ActivationPacket]) -> bytes:
    """As `Lease.headers`."""
    found = bytearray(HEADER_BYTES * len(packets))
    for index, packet in enumerate(packets):
        _write_header(found, HEADER_BYTES * index, packet)
    return bytes(found)


def copy_frames(packets: Sequence[ActivationPacket], out: memoryview, places: Places) -> None:
    """As `Lease.copy_frames`."""
    for index, at in places.tolist():
        if not 0 <= index < len(packets):
            raise ValueError(f"no packet {index}: the lease has {len(packets)}")
        packet = packets[index]
        end = at + HEADER_BYTES + packet.payload.nbytes
        if not 0 <= at <= end <= out.nbytes:
            raise ValueError(f"a frame from {at} to {end} in {out.nbytes} bytes")
        _write_header(out, at, packet)
        out[at + HEADER_BYTES : end] = packet.payload


def push_frames(
    try_push: Callable[[PacketMeta, memoryview], bool],
    meta: PacketMeta,
    data: memoryview,
    places: Places,
) -> int:
    """As `BusProducer.try_push_frames`."""
    if not (places[:, 1] >= HEADER_BYTES).all():
        raise ValueError(
            f"a frame has {HEADER_BYTES} bytes of header: {places[:, 1].min()} are too few"
        )
    if not ((places[:, 0] >= 0) & (places[:, 0] <= data.nbytes - places[:, 1])).all():
        raise ValueError(f"a frame does not lie in {data.nbytes} bytes")
    for index, (at, nbytes) in enumerate(places.tolist()):
        hook_id, kind = _HOOK_AND_KIND.unpack_from(data, at + 54)
        its = meta._replace(hook_id=hook_id, kind=kind, shape=(nbytes,))
        if not try_push(its, data[at : at + nbytes]):
            return index
    return len(places)


def _write_header(out: bytearray | memoryview, at: int, packet: ActivationPacket) -> None:
    meta = PacketMeta(
        packet.hook_id,
        packet.kind,
        DTYPE_CODE[packet.dtype],
        packet.shape,
        packet.host_step,
        packet.timestamp_ns,
        packet.weights_version,
        packet.encoding_id,
        packet.params,
        packet.sampling_rate,
        packet.call_index,
        packet.microbatch,
        packet.token_position,
        packet.text,
    )
    pack_header_into(
        out, at, meta, seq=packet.seq, shard=packet.shard, source=packet.source,
        payload_bytes=packet.payload.nbytes, crc=packet.crc,
    )  # fmt: skip
