"""What of the host's state would reach into our own tensor operations, and how it is kept out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._C import (
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes


def is_bare() -> bool:
    """Nothing of the host's changes what our operations do (autograd aside, which `detach` keeps out)."""
    return not (
        _is_any_autocast_enabled()
        or torch.is_inference_mode_enabled()
        or _len_torch_function_stack()
        or _len_torch_dispatch_stack()
    )


def is_transformed() -> bool:
    """A transform of functorch (vmap, grad, jvp) is running: operations are its own, ours too."""
    return peek_interpreter_stack() is not None


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


def unwatched(function: Callable[..., None], *args: Any) -> None:
    """Call `function` so that no mode and no tracer of the host's sees what it does.

    A `TorchFunctionMode` sees even the reading of a tensor's shape, and `torch.jit.trace` takes names
    for its graph from the frames that call an operator.
    """
    if (
        _len_torch_function_stack()
        or _len_torch_dispatch_stack()
        or _get_tracing_state() is not None
    ):
        with _unwatched():
            function(*args)
    else:
        function(*args)


@contextmanager
def _unwatched() -> Iterator[None]:
    tracing = _get_tracing_state()
    with ExitStack() as stack:
        if _len_torch_function_stack():
            stack.enter_context(torch._C.DisableTorchFunction())
        if _len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        if tracing is not None:
            torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
            stack.callback(torch._C._set_tracing_state, tracing)  # type: ignore[attr-defined]
        yield
