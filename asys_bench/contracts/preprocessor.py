"""The preprocessor (kernel): turns a tensor into bytes in a reserved slot, and back.

Every preprocessor does all of this and passes `tests/conformance/test_kernel.py`:

- `encoded_bytes` says how many bytes `encode` needs at most, before anything is reserved.
- `encode` reads the tensor once, never changes or keeps it, never synchronises a stream it does not
  own, and draws nothing from the host's random generators.
- `decode` restores a tensor of the packet's dtype and shape: `target` says which, `max_error` how far
  it may be off. It never trusts sizes in the payload.
- Non-contiguous, empty, zero-dimensional and non-finite inputs are legal.
- Every implementation (compiled, numba, torch, GPU) writes the same bytes as the torch reference.

Rows are what the last dimension holds: a tensor [..., D] has prod(...) rows of D elements, in
row-major order; [D] is one row and a scalar one row of one element.

A preprocessor is an encoder (tensor -> bytes), a `Stage` (tensor -> tensor, whose own encoding is
the bytes of what it returns) or a `RowSampler` (a stage that keeps some rows). Stages can be put in
front of another preprocessor: see `contracts.chain`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel

from asys_bench.contracts.packet import NO_PARAMS, ActivationPacket, tensor_view

Positions = npt.NDArray[np.int64]
"""Rows of a tensor: int64[n], ascending, no repeats."""


class KernelOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a preprocessor's own option model (`hooks[].preprocess` in YAML)."""


class Encoded(NamedTuple):
    """What `encode` did: bytes used, and the logical dtype and shape that `decode` will return."""

    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    params: bytes = NO_PARAMS
    row_rate: float = 1.0
    """Probability that a row of the tensor is in the packet; a consumer's weights divide by it."""


def rows_and_width(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of rows and elements per row of a tensor of `shape`."""
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)


class Preprocessor(ABC):
    """One encoding. Instances belong to one hook and may keep scratch memory."""

    encoding: str
    """The interned name in packet headers; consumers find the decoder by it."""
    is_identity: bool = False
    """The payload is the tensor's own bytes: the hook may push them without a reservation."""
    samples: bool = False
    """Not every row of a tensor is sent; the header's parameters say which are."""
    rows_each: int = 1
    """Rows that each row of a captured tensor becomes; `rows` and `grid` count those."""

    @abstractmethod
    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Upper bound of the payload for a tensor of this shape and dtype, in bytes."""

    def encoded_bytes(self, tensor: torch.Tensor) -> int:
        """Upper bound of the payload for `tensor`, in bytes."""
        return self.payload_bytes(tensor.shape, tensor.dtype)

    def decoded_width(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Elements per row that a sink decodes from a tensor of `shape` and `dtype`."""
        del dtype
        return rows_and_width(shape)[1]

    @abstractmethod
    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        """Write the payload into `out` (at least `encoded_bytes` long) and say what was written.

        Raises:
            PacketError: a dtype this encoding cannot carry.
        """

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        """As `encode`, for the tensor [n, D] of the rows at `positions`, without making it first.

        Raises:
            PacketError: as `encode`, or a position past the last row.
        """
        return self.encode(take_rows(tensor, positions), out)

    @abstractmethod
    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        """The tensor; it may view the packet's payload, so it must not outlive the lease.

        Raises:
            PacketError: the payload does not fit the header.
        """

    def target(self, tensor: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        """What `decode` gives back, up to `max_error`: the tensor, or what the stages make of it."""
        del encoded
        return tensor

    def max_error(self, target: torch.Tensor) -> torch.Tensor:
        """Element-wise bound on |decoded - target| for finite elements; zero when lossless."""
        return torch.zeros_like(target)

    def rows(self, packet: ActivationPacket) -> Positions | None:
        """Which row of the captured tensor each decoded row is; None: all of them, in order.

        Raises:
            PacketError: the packet's parameters do not fit its shape.
        """
        del packet
        return None

    def grid(self, packet: ActivationPacket) -> tuple[int, ...]:
        """Leading dimensions of the captured tensor, which `rows` counts through; () if not known.

        Raises:
            PacketError: as `rows`.
        """
        return packet.shape[:-1]


class Staged(NamedTuple):
    """What a stage made of a tensor."""

    tensor: torch.Tensor
    params: bytes = NO_PARAMS
    row_rate: float = 1.0


class Stage(Preprocessor):
    """A preprocessor that maps a tensor to a tensor; alone, it sends that tensor's own bytes."""

    @abstractmethod
    def staged(
        self, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """The largest shape, and the dtype, that `apply` makes of a tensor of `shape` and `dtype`."""

    @abstractmethod
    def apply(self, tensor: torch.Tensor) -> Staged:
        """The mapped tensor; may view `tensor`. Errors as `encode`."""

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        shape, dtype = self.staged(shape, dtype)
        return prod(shape) * dtype.itemsize

    def decoded_width(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return rows_and_width(self.staged(shape, dtype)[0])[1]

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        staged, params, row_rate = self.apply(tensor)
        shape = tuple(staged.shape)
        if staged.numel():
            tensor_view(out, staged.dtype, shape).copy_(staged)
        nbytes = staged.numel() * staged.element_size()
        return Encoded(nbytes, staged.dtype, shape, params, row_rate)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return packet.raw_tensor()


class Selection(NamedTuple):
    """Rows that a sampler keeps; `positions` is None when the tensor travels whole."""

    positions: Positions | None
    params: bytes = NO_PARAMS
    row_rate: float = 1.0


class RowSampler(Stage):
    """A stage that keeps some rows. Its parameters fill the header's, so a chain has one at most."""

    samples = True

    @abstractmethod
    def select(self, shape: tuple[int, ...]) -> Selection:
        """Draw the rows to keep of a tensor of `shape`; each call is a new draw."""

    def apply(self, tensor: torch.Tensor) -> Staged:
        positions, params, row_rate = self.select(tensor.shape)
        kept = tensor if positions is None else take_rows(tensor, positions)
        return Staged(kept, params, row_rate)


def take_rows(tensor: torch.Tensor, positions: Positions) -> torch.Tensor:
    """The rows [n, D] at `positions`, copied."""
    rows = tensor.detach().reshape(rows_and_width(tensor.shape))
    return rows.index_select(0, torch.from_numpy(positions).to(tensor.device))


class Role(StrEnum):
    """What a preprocessor may be in a chain."""

    ENCODER = "encoder"
    """Tensor to bytes: the last step."""
    STAGE = "stage"
    """Tensor to tensor: any step."""
    SAMPLER = "sampler"
    """A stage that keeps some rows: any step, once."""


@dataclass(frozen=True)
class KernelPlugin:
    """What `kernels/<name>/plugin.py` exports as `plugin` (entry point group `asys.kernel`)."""

    name: str
    summary: str
    options: type[KernelOptions]
    build: Callable[[Any], Preprocessor]
    """An encoder from its options (an instance of `options`)."""
    decoder: Callable[[str], Preprocessor | None]
    """A decoder for an interned encoding name, or None when the name is not one of this kernel's."""
    unavailable: Callable[[], str | None] = lambda: None
    role: Role = Role.ENCODER
