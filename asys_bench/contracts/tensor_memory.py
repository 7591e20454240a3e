"""Whether a tensor's memory is there: asked before any code of ours reads through its pointer.

`backends/cpp_spmc/bindings/py_packet.cpp` (`holds`) asks the same in compiled code.
"""

from __future__ import annotations

import torch

FREED = "the host has freed the tensor's memory, or a part of it (its storage was resized)"


def memory_fault(tensor: torch.Tensor) -> str | None:
    """Why reading a strided tensor would read what is not its memory, or None.

    Hosts free a tensor's storage under it (`untyped_storage().resize_(0)`: FSDP, reversible networks).
    Not even torch's own operators look before they read.
    """
    if tensor.layout is not torch.strided:
        return None
    end = tensor.storage_offset()
    if tensor.is_contiguous():
        end += tensor.numel()
    elif tensor.numel():
        end += 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            end += (size - 1) * stride
    if end * tensor.itemsize <= tensor.untyped_storage().nbytes() or not tensor.numel():
        return None
    return FREED
