"""The lossless encoding: the tensor's elements in row-major order, in their own dtype."""

from __future__ import annotations

from math import prod

import torch

from asys_bench.contracts.labels import is_of_labels
from asys_bench.contracts.packet import ActivationPacket, tensor_view
from asys_bench.contracts.preprocessor import (
    Encoded,
    KernelOptions,
    KernelPlugin,
    Positions,
    Preprocessor,
    rows_and_width,
    take_rows,
)
from asys_bench.kernels.simd.implementations import TORCH, Implementations
from asys_bench.kernels.simd.sections import check_positions


def write(tensor: torch.Tensor, out: memoryview, positions: Positions | None = None) -> int:
    """Write the elements of `tensor` (or of its rows at `positions`); returns the bytes.

    Plain torch; every other version writes the same bytes.
    """
    if positions is not None:
        check_positions(positions, rows_and_width(tensor.shape)[0])
        tensor = take_rows(tensor, positions)
    if tensor.numel():
        tensor_view(out, tensor.dtype, tuple(tensor.shape)).copy_(tensor.detach())
    return tensor.numel() * tensor.element_size()


IMPLEMENTATIONS = Implementations("gather", None, write)


class IdentityPreprocessor(Preprocessor):
    """The tensor's own bytes; `implementation` None takes the best one here.

    The hook pushes contiguous tensors without calling this; `encode` serves the others and, in
    chains, the rows that a sampler kept.
    """

    encoding = "identity"
    is_identity = True

    def __init__(self, implementation: str | None = None) -> None:
        self._write = IMPLEMENTATIONS.writer(implementation)

    def payload_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return prod(shape) * dtype.itemsize

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        return Encoded(self._write(tensor, out), tensor.dtype, tensor.shape)

    def encode_rows(self, tensor: torch.Tensor, out: memoryview, positions: Positions) -> Encoded:
        shape = (len(positions), rows_and_width(tensor.shape)[1])
        return Encoded(self._write(tensor, out, positions), tensor.dtype, shape)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return packet.raw_tensor()


def _decoder(encoding: str) -> IdentityPreprocessor | None:
    known = encoding == IdentityPreprocessor.encoding or is_of_labels(encoding)
    return IdentityPreprocessor(TORCH) if known else None


plugin = KernelPlugin(
    name="identity",
    summary="the tensor's own bytes, lossless",
    options=KernelOptions,
    build=lambda options: IdentityPreprocessor(),
    decoder=_decoder,
)
