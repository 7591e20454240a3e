"""From a packet to its tensor: the right decoder for each interned encoding."""

from __future__ import annotations

from collections.abc import Callable

import torch

from asys_bench.contracts.packet import ActivationPacket, PacketError
from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor
from asys_bench.registry import registry


class Decoder:
    """Decodes packets of one bus; `name_of` is the bus client's."""

    def __init__(self, name_of: Callable[[int], str]) -> None:
        self._name_of = name_of
        self._by_id: dict[int, Preprocessor] = {}

    def __call__(self, packet: ActivationPacket) -> torch.Tensor:
        """The packet's tensor; it may view the lease's memory.

        Raises:
            PacketError: no loaded kernel decodes this encoding.
        """
        kernel = self._by_id.get(packet.encoding_id)
        if kernel is None:
            kernel = self._find(self._name_of(packet.encoding_id))
            self._by_id[packet.encoding_id] = kernel
        return kernel.decode(packet)

    def _find(self, encoding: str) -> Preprocessor:
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
