"""Payloads whose every byte is checked: fresh random bodies in rotation under a stamp.

A payload is ``u64 number | u64 ~number | random body``. The body is one of a pool made from the
round's seed, larger than the caches where it can be, and the number of bodies is odd, so that a
slot of a power-of-two ring never gets the same body twice in a row: a reader that sees an old slot
sees a wrong stamp, and one that sees half a write sees a wrong checksum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts.packet import DTYPE_CODE, ActivationPacket, PacketMeta, checksum

STAMP_BYTES = 16
POOL_BYTES = 32 << 20
MAX_BODIES = 511
_MASK = (1 << 64) - 1
_UINT8 = DTYPE_CODE[torch.uint8]


class PayloadPool:
    """Bodies and their checksums; the same seed gives the same pool in any process."""

    def __init__(self, seed: int, payload_bytes: int) -> None:
        if payload_bytes < STAMP_BYTES:
            raise ValueError(f"a checked payload has at least {STAMP_BYTES} bytes")
        count = max(3, min(MAX_BODIES, POOL_BYTES // payload_bytes)) | 1
        rng = np.random.Generator(np.random.SFC64(seed))
        self.payload_bytes = payload_bytes
        self.bodies: npt.NDArray[np.uint8] = rng.integers(
            0, 256, (count, payload_bytes), dtype=np.uint8
        )
        self.checksums = [checksum(body[STAMP_BYTES:].data) for body in self.bodies]
        self._stamps = [body[:STAMP_BYTES].view(np.uint64) for body in self.bodies]

    def stamped(self, number: int) -> npt.NDArray[np.uint8]:
        """The payload of packet `number`; valid until the pool has rotated once."""
        row: npt.NDArray[np.uint8] = self.stamped_rows(number, 1)[0]
        return row

    def stamped_rows(self, number: int, most: int) -> npt.NDArray[np.uint8]:
        """Payloads from `number` on as rows of one array: `most`, or fewer at the pool's end."""
        index = number % len(self.bodies)
        rows = self.bodies[index : index + most]
        for offset in range(len(rows)):
            stamped = number + offset
            self._stamps[index + offset][:] = (stamped, stamped ^ _MASK)
        return rows

    def number_of(self, packet: ActivationPacket) -> int:
        """The packet's number when every byte is what was sent under it; -1 when it is torn."""
        payload = packet.payload
        if payload.nbytes != self.payload_bytes:
            return -1
        number = int.from_bytes(payload[:8], "little")
        if int.from_bytes(payload[8:STAMP_BYTES], "little") != number ^ _MASK:
            return -1
        if checksum(payload[STAMP_BYTES:]) != self.checksums[number % len(self.checksums)]:
            return -1
        return number


def meta_for(number: int, payload_bytes: int, timestamp_ns: int) -> PacketMeta:
    """The header of packet `number`, sent (or meant to be sent) at `timestamp_ns`."""
    return PacketMeta(0, 0, _UINT8, (payload_bytes,), number, timestamp_ns)
