"""The preprocessor (kernel): turns a tensor into bytes in a reserved slot, and back.

Every preprocessor does all of this and passes `tests/conformance/test_kernel.py`:

- `encoded_bytes` says how many bytes `encode` needs at most, before anything is reserved.
- `encode` reads the tensor once, never changes or keeps it, never synchronises a stream it does not
  own, and draws nothing from the host's random generators.
- `decode` restores a tensor of the packet's dtype and shape; `max_error` states how far it may be
  off. It never trusts sizes in the payload.
- Non-contiguous, empty, zero-dimensional and non-finite inputs are legal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel

from asys_bench.contracts.packet import NO_PARAMS, ActivationPacket


class KernelOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a preprocessor's own option model (`hooks[].preprocess` in YAML)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What `encode` did: bytes used, and the logical dtype and shape that `decode` will return."""

    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    params: bytes = NO_PARAMS


class Preprocessor(ABC):
    """One encoding. Instances belong to one hook and may keep scratch memory."""

    encoding: str
    """The interned name in packet headers; consumers find the decoder by it."""
    is_identity: bool = False
    """The payload is the tensor's own bytes: the hook may push them without a reservation."""

    @abstractmethod
    def encoded_bytes(self, tensor: torch.Tensor) -> int:
        """Upper bound of the payload for `tensor`, in bytes."""

    @abstractmethod
    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        """Write the payload into `out` (exactly `encoded_bytes` long) and say what was written.

        Raises:
            PacketError: a dtype this encoding cannot carry.
        """

    @abstractmethod
    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        """The tensor; it may view the packet's payload, so it must not outlive the lease.

        Raises:
            PacketError: the payload does not fit the header.
        """

    def max_error(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise bound on |decode(encode(tensor)) - tensor|; zero for lossless encodings."""
        return torch.zeros_like(tensor)


@dataclass(frozen=True)
class KernelPlugin:
    """What `kernels/<name>/plugin.py` exports as `plugin` (entry point group `asys.kernel`)."""

    name: str
    summary: str
    options: type[KernelOptions]
    build: Callable[[KernelOptions], Preprocessor]
    """An encoder from its options."""
    decoder: Callable[[str], Preprocessor | None]
    """A decoder for an interned encoding name, or None when the name is not one of this kernel's."""
    unavailable: Callable[[], str | None] = lambda: None
