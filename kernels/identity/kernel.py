"""The lossless encoding: the tensor's elements in row-major order, in their own dtype."""

from __future__ import annotations

import torch

from asys_bench.contracts.packet import ActivationPacket, tensor_view
from asys_bench.contracts.preprocessor import Encoded, Preprocessor


class IdentityPreprocessor(Preprocessor):
    encoding = "identity"
    is_identity = True

    def encoded_bytes(self, tensor: torch.Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    def encode(self, tensor: torch.Tensor, out: memoryview) -> Encoded:
        shape = tuple(tensor.shape)
        if tensor.numel():
            tensor_view(out, tensor.dtype, shape).copy_(tensor)
        return Encoded(self.encoded_bytes(tensor), tensor.dtype, shape)

    def decode(self, packet: ActivationPacket) -> torch.Tensor:
        return packet.raw_tensor()
