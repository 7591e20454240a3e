"""What of the host's state would reach into our own tensor operations, and which tensors can be read.

`is_bare`, `undisturbed`, `is_watched` and `unwatched` keep modes and tracers of the host out.
`unreadable`, `readable` and `plain` say whether a tensor has bytes that a hook can copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from asys_bench.capture.shards import is_distributed, why_not_local
from asys_bench.contracts.packet import DTYPE_CODE, MAX_DIM, MAX_NDIM
from asys_bench.contracts.tensor_memory import memory_fault
from asys_bench.contracts.torch_internals import (
    DisableTorchFunction,
    disable_dispatch_modes,
    dispatch_modes,
    function_modes,
    get_tracing_state,
    is_any_autocast_enabled,
    is_functorch_wrapped_tensor,
    is_zerotensor,
    peek_interpreter_stack,
    set_tracing_state,
)


def is_bare() -> bool:
    """Nothing of the host's changes what our operations do (autograd aside, which `detach` keeps out)."""
    return not (
        is_any_autocast_enabled()
        or torch.is_inference_mode_enabled()
        or function_modes()
        or dispatch_modes()
    )


def is_transformed() -> bool:
    """A transform of functorch (vmap, grad, jvp) is running: operations are its own, ours too."""
    return peek_interpreter_stack() is not None


def is_cuda_started() -> bool:
    """Asking starts nothing."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def is_graph_captured() -> bool:
    """A CUDA graph is captured from this thread's stream: whatever is issued becomes part of it."""
    return is_cuda_started() and torch.cuda.is_current_stream_capturing()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run an encoder as if the host had no autocast, inference or dispatch mode active.

    Otherwise autocast would round what is projected, a default device would move scratch memory,
    scratch memory made in inference mode could not be written to outside of it, and a mode that
    counts or logs the host's operations would count ours.
    """
    with ExitStack() as stack:
        stack.enter_context(_unwatched())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.no_grad())
        yield


def is_watched() -> bool:
    """A mode or a tracer of the host's sees each operation of this thread, ours too."""
    return bool(function_modes() or dispatch_modes()) or get_tracing_state() is not None


def unwatched(function: Callable[..., None], *args: Any) -> None:
    """Call `function` so that no mode and no tracer of the host's sees what it does.

    A `TorchFunctionMode` sees even the reading of a tensor's shape, and `torch.jit.trace` takes names
    for its graph from the frames that call an operator.
    """
    if is_watched():
        with _unwatched():
            function(*args)
    else:
        function(*args)


@contextmanager
def _unwatched() -> Iterator[None]:
    tracing = get_tracing_state()
    with ExitStack() as stack:
        if function_modes():
            stack.enter_context(DisableTorchFunction())
        if dispatch_modes():
            stack.enter_context(disable_dispatch_modes())
        if tracing is not None:
            set_tracing_state(None)
            stack.callback(set_tracing_state, tracing)
        yield


TRANSFORMED = "tensors inside a functorch transform (grad, vmap) cannot be read"

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def unreadable(tensor: torch.Tensor) -> str | None:
    """Why there is nothing to copy, or None.

    Tensors of a tracer (fake, functional), of a functorch transform, of a distributed layout or
    without storage are legal in a model; a hook passes them by. Every hook asks here before it reads
    (the compiled path, `view_tensor` of py_packet.cpp, asks the same and leaves the rest to this).
    """
    kind = type(tensor)
    if kind not in _PLAIN and kind.__torch_dispatch__ is not _PLAIN_DISPATCH:
        shared = why_not_local(tensor) if is_distributed(tensor) else None
        return shared or f"a {kind.__name__} holds no bytes of its own"
    if is_transformed() or is_functorch_wrapped_tensor(tensor):
        return TRANSFORMED
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"a {'nested' if tensor.is_nested else tensor.layout} tensor is not captured"
    if tensor.is_meta:
        return "a tensor on the meta device has no values"
    if tensor.dtype not in DTYPE_CODE:
        return f"packets cannot carry {tensor.dtype}"
    if tensor.ndim > MAX_NDIM:
        return f"packets carry tensors of at most {MAX_NDIM} dimensions"
    if tensor.numel() > MAX_DIM and max(tensor.shape) > MAX_DIM:
        return "packets carry dimensions below 2**32"
    if is_zerotensor(tensor):
        return "a zero of autograd's own has no memory"
    return memory_fault(tensor) if tensor.is_cpu or tensor.is_cuda else None


def readable(value: object) -> torch.Tensor | None:
    """`value` where it is a tensor in host memory that may be read and computed with; else None."""
    if type(value) is not torch.Tensor or not value.is_cpu or unreadable(value) is not None:
        return None
    return value


def on_device(value: object) -> torch.Tensor | None:
    """`value` where it is a readable tensor in a device's memory: its values are not to be asked for."""
    if not isinstance(value, torch.Tensor) or value.is_cpu or unreadable(value) is not None:
        return None
    return value


def address(tensor: torch.Tensor) -> int:
    """Of its memory, to compare; 0 where it has none. Nobody may read there."""
    return tensor.data_ptr() if unreadable(tensor) is None else 0


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
