"""Whether a tensor has bytes that a hook can copy."""

from __future__ import annotations

import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from asys_bench.contracts.packet import DTYPE_CODE
from asys_bench.pipeline.host_state import is_transformed

TRANSFORMED = "tensors inside a functorch transform (grad, vmap) cannot be read"

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def unreadable(tensor: torch.Tensor) -> str | None:
    """Why there is nothing to copy, or None.

    Tensors of a tracer (fake, functional), of a functorch transform, of a distributed layout or
    without storage are legal in a model; a hook passes them by.
    """
    kind = type(tensor)
    if kind not in _PLAIN and kind.__torch_dispatch__ is not _PLAIN_DISPATCH:
        return f"a {kind.__name__} holds no bytes of its own"
    if is_transformed() or is_functorch_wrapped_tensor(tensor):
        return TRANSFORMED
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"a {'nested' if tensor.is_nested else tensor.layout} tensor is not captured"
    if tensor.is_meta:
        return "a tensor on the meta device has no values"
    if tensor.dtype not in DTYPE_CODE:
        return f"packets cannot carry {tensor.dtype}"
    return None


def memory_fault(tensor: torch.Tensor) -> str | None:
    """Why reading a strided tensor would read what is not its memory, or None.

    Hosts free a tensor's storage under it (`untyped_storage().resize_(0)`: FSDP, reversible networks).
    Not even torch's own operators look before they read.
    """
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return None
    end = tensor.storage_offset() + 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        end += (size - 1) * stride
    if end * tensor.itemsize <= tensor.untyped_storage().nbytes():
        return None
    return "the host has freed the tensor's memory, or a part of it (its storage was resized)"


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a readable tensor's bytes, as they lie in host memory, are its values in order."""
    return (
        type(tensor) in _PLAIN
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A readable tensor without autograd, subclass and lazy conjugation or negation; same values."""
    tensor = tensor.detach()
    if type(tensor) is not torch.Tensor:
        tensor = tensor.as_subclass(torch.Tensor)
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor
