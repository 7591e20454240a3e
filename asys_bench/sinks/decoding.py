"""From a packet to its tensor: the right decoder for each interned encoding, chains included."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from asys_bench.contracts.chain import chain_decoder
from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import KernelPlugin, Positions, Preprocessor
from asys_bench.registry import registry


class Decoder:
    """Decodes packets of one bus; `name_of` is the bus client's."""

    def __init__(self, name_of: Callable[[int], str]) -> None:
        self._name_of = name_of
        self._by_id: dict[int, Preprocessor] = {}

    def __call__(self, packet: ActivationPacket) -> torch.Tensor:
        """The packet's tensor; it may view the lease's memory.

        Raises:
            PacketError: no loaded kernel decodes this encoding, or the payload does not fit it.
        """
        return self._kernel(packet).decode(packet)

    def rows(self, packet: ActivationPacket) -> Positions | None:
        """Which row of the captured tensor each decoded row is; None: all of them, in order.

        Raises:
            PacketError: as for a call, or the packet's parameters do not fit its shape.
        """
        return self._kernel(packet).rows(packet)

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        """Leading dimensions that `rows` counts through; () if not known. Raises as `rows`."""
        return self._kernel(packet).grid(packet)

    def rows_each(self, packet: ActivationPacket) -> int:
        """Rows that each row of the captured tensor has become. Raises as `rows`."""
        return self._kernel(packet).rows_each

    def _kernel(self, packet: ActivationPacket) -> Preprocessor:
        kernel = self._by_id.get(packet.encoding_id)
        if kernel is None:
            kernel = decoder_of(self._name_of(packet.encoding_id))
            self._by_id[packet.encoding_id] = kernel
        return kernel


def decoder_of(encoding: str) -> Preprocessor:
    """The decoder of an interned name.

    Raises:
        PacketError: no loaded kernel decodes it.
    """
    return chain_decoder(encoding, _find)


@lru_cache(maxsize=256)
def rows_each(encoding: str) -> int:
    """Rows that each row of a captured tensor has become under an interned name; 1 where no loaded kernel
    knows it."""
    try:
        return decoder_of(encoding).rows_each
    except PacketError:
        return 1


def _find(encoding: str) -> Preprocessor:
    """The decoder of one encoding that is no chain."""
    kernels = registry("kernel")
    failures = kernels.failures()
    for name in kernels.names():
        if name not in failures:
            decoder = kernels.get(name, KernelPlugin).decoder(encoding)
            if decoder is not None:
                return decoder
    raise PacketError(
        f"no kernel decodes {encoding!r}; loaded: {', '.join(kernels.names())}"
        + "".join(f"; {name} failed: {reason}" for name, reason in failures.items())
    )
