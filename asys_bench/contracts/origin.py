"""Packets that came from another node: what they were where they were captured.

A receiver pushes what it was sent onto its own bus, whose producer numbers packets anew. So the payload
of such a packet begins with its own header, and the name of its encoding is `origin`::

    <header of the ring, encoding "origin"> | <header of the origin, 128 bytes> | <payload>

In the header of the origin, ids are those of this bus, and the time is on this node's clock; source, shard
and seq are the origin's. Readers see packets of the origin (`OriginLease`), and nothing of the ring's.

Why a prefix and no second version of the header: every backend, the compiled hook call and every archive
know the header as it is, and a packet that was captured here must not grow by a byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asys_bench.contracts.bus import Lease
from asys_bench.contracts.packet import DTYPE_CODE, HEADER_BYTES, ActivationPacket, PacketMeta

ORIGIN = "origin"
"""The interned name of the encoding."""
PREFIX_BYTES = HEADER_BYTES
_BYTES = DTYPE_CODE[torch.uint8]


def ring_meta(origin_id: int) -> PacketMeta:
    """What the ring's own headers say of such packets, but for hook, kind and size
    (`BusProducer.try_push_frames`).

    origin_id: of the name `ORIGIN` on this bus.
    """
    return PacketMeta(0, 0, _BYTES, (0,), encoding_id=origin_id)


def restored(packet: ActivationPacket) -> ActivationPacket:
    """The packet as it was captured; its payload views the same memory.

    Raises:
        PacketError: its payload does not begin with a header that fits it.
    """
    return ActivationPacket.unpack(packet.payload)


class OriginLease(Lease):
    """A lease of a bus that holds packets of other nodes, as they were captured.

    origin_id: of the name `ORIGIN` on that bus.
    """

    def __init__(self, inner: Lease, origin_id: int) -> None:
        self._inner, self._origin_id = inner, origin_id
        self._packets: tuple[ActivationPacket, ...] | None = None

    def __len__(self) -> int:
        return len(self._inner)

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        if self._packets is None:
            self._packets = tuple(
                restored(packet) if packet.encoding_id == self._origin_id else packet
                for packet in self._inner.packets
            )
        return self._packets

    def release(self) -> int:
        self._let_go()
        return self._inner.release()

    def give_back(self) -> None:
        try:
            self._let_go()
        except BufferError:  # a traceback may hold arrays; they are invalid from here on
            self._packets = None
        self._inner.give_back()

    def _let_go(self) -> None:
        """Raises BufferError: a payload view is still alive."""
        for packet in self._packets or ():
            packet.payload.release()
        self._packets = None
