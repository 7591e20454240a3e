"""Packet headers, written and read in half the time of the contract's own functions.

The bytes and checks are those of `pack_header_into` and `ActivationPacket.from_parts` (tests compare
them): packing unpacks the meta once, and a packet's slots set themselves where a frozen dataclass goes
through `object.__setattr__` for each field.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from asys_bench.contracts.packet import (
    DTYPES,
    FLAG_CRC,
    HEADER,
    MAGIC,
    MAX_NDIM,
    VERSION,
    ActivationPacket,
    Kind,
    PacketError,
    PacketMeta,
)
from asys_bench.contracts.tensor_memory import memory_fault

_KINDS = tuple(Kind)
_PADDING = tuple((0,) * (MAX_NDIM - ndim) for ndim in range(MAX_NDIM + 1))
_pack_into = HEADER.pack_into


def pack_template(
    buffer: memoryview, meta: PacketMeta, shard: int, source: int, nbytes: int, crc: int | None
) -> None:
    """Write the header of `meta` with sequence number 0.

    Raises:
        PacketError: as `pack_header_into`.
    """
    try:
        (
            hook_id, kind, dtype, shape, host_step, timestamp_ns, weights_version, encoding_id,
            params, sampling_rate, call_index, microbatch, token_position, text,
        ) = meta  # fmt: skip
        _pack_into(
            buffer, 0, MAGIC, VERSION, 0 if crc is None else FLAG_CRC, 0, host_step, timestamp_ns,
            weights_version, nbytes, source, shard, hook_id, encoding_id, kind, dtype, len(shape), text,
            microbatch, call_index & 0xFFFFFFFF, sampling_rate, crc or 0, token_position,
            *shape, *_PADDING[len(shape)], params,
        )  # fmt: skip
    except (struct.error, TypeError, ValueError, IndexError, OverflowError) as error:
        if isinstance(meta, PacketMeta) and len(meta.shape) > MAX_NDIM:
            raise PacketError(
                f"shape {meta.shape} has {len(meta.shape)} dimensions; a packet holds at most {MAX_NDIM}"
            ) from error
        raise PacketError(f"a header field is out of range ({error}): {meta}") from error


def _setter(name: str) -> Callable[[ActivationPacket, Any], None]:
    setter: Callable[[ActivationPacket, Any], None] = getattr(ActivationPacket, name).__set__
    return setter


_seq, _source, _shard, _hook_id = map(_setter, ("seq", "source", "shard", "hook_id"))
_kind, _dtype, _shape = map(_setter, ("kind", "dtype", "shape"))
_host_step, _timestamp_ns = map(_setter, ("host_step", "timestamp_ns"))
_weights_version, _encoding_id = map(_setter, ("weights_version", "encoding_id"))
_params, _sampling_rate, _call_index = map(_setter, ("params", "sampling_rate", "call_index"))
_microbatch, _token_position = map(_setter, ("microbatch", "token_position"))
_crc, _text = map(_setter, ("crc", "text"))
set_payload = _setter("payload")
"""(packet, view): also puts a fresh view in place of one that a refused release closed."""


def build_packet(arena: memoryview, header_at: int, payload: memoryview) -> ActivationPacket:
    """The packet whose header lies at `header_at`; it is treated as untrusted.

    Raises:
        PacketError: as `ActivationPacket.from_parts`.
    """
    (
        magic, version, flags, seq, host_step, timestamp_ns, weights_version, payload_bytes,
        source, shard, hook_id, encoding_id, kind, dtype, ndim, text, microbatch,
        call_index, sampling_rate, crc, token_position, *rest,
    ) = HEADER.unpack_from(arena, header_at)  # fmt: skip
    if (
        magic != MAGIC
        or version != VERSION
        or ndim > MAX_NDIM
        or dtype >= len(DTYPES)
        or kind >= len(_KINDS)
        or payload_bytes != payload.nbytes
    ):
        header = bytes(arena[header_at : header_at + HEADER.size])
        return ActivationPacket.from_parts(header, payload)  # raises, and says which
    packet = object.__new__(ActivationPacket)
    _seq(packet, seq)
    _source(packet, source)
    _shard(packet, shard)
    _hook_id(packet, hook_id)
    _kind(packet, _KINDS[kind])
    _dtype(packet, DTYPES[dtype])
    _shape(packet, tuple(rest[:ndim]))
    _host_step(packet, host_step)
    _timestamp_ns(packet, timestamp_ns)
    _weights_version(packet, weights_version)
    _encoding_id(packet, encoding_id)
    _params(packet, rest[MAX_NDIM])
    _sampling_rate(packet, sampling_rate)
    _call_index(packet, call_index)
    _microbatch(packet, microbatch)
    _token_position(packet, token_position)
    _crc(packet, crc if flags & FLAG_CRC else None)
    set_payload(packet, payload)
    _text(packet, text)
    return packet


# Where the bytes of a payload are: any contiguous buffer or CPU tensor -> address and size.

_from_buffer: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_NOWHERE = np.zeros(8, np.uint8)

Located = tuple[int, int, object]
"""(address, bytes, what keeps them there)"""


class BytesAddress:
    """The address of a `bytes` object's content, in a tenth of the time that numpy takes."""

    def __init__(self) -> None:
        self._pointer = ctypes.c_char_p()
        self._number = ctypes.c_void_p.from_buffer(self._pointer)

    def of(self, content: bytes) -> int:
        self._pointer.value = content
        return self._number.value or 0


def locate(payload: Any) -> Located:
    """The bytes of one payload.

    Raises:
        PacketError: not contiguous memory of this process.
    """
    if isinstance(payload, torch.Tensor):
        if not payload.is_cpu or not payload.is_contiguous():
            raise PacketError(
                f"needs a contiguous CPU tensor, got {payload.device}, {payload.stride()}"
            )
        fault = memory_fault(payload)
        if fault is not None:
            raise PacketError(fault)
        return payload.data_ptr(), payload.nbytes, payload
    if type(payload) is np.ndarray and payload.flags.carray and payload.nbytes:
        # Contiguous and writable: four times faster than its `__array_interface__`.
        return ctypes.addressof(_from_buffer(payload)), payload.nbytes, payload
    try:
        view = memoryview(payload)
        if not view.c_contiguous:
            raise PacketError(f"the payload ({type(payload).__name__}) is not contiguous")
        if view.nbytes == 0:
            return _address(_NOWHERE), 0, payload
        array = np.frombuffer(view, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        if isinstance(error, PacketError):
            raise
        raise PacketError(
            f"the payload ({type(payload).__name__}) is not a contiguous buffer or CPU tensor"
        ) from error
    return _address(array), view.nbytes, array


def _address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])
