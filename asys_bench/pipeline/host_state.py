"""What of the host's state would reach into our own tensor operations, and how it is kept out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch.utils._python_dispatch import _disable_current_modes


def is_bare() -> bool:
    """No mode of the host's is active (autograd aside, which `detach` keeps out)."""
    return not (
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.is_inference_mode_enabled()
        or _len_torch_function_stack()
        or _len_torch_dispatch_stack()
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run an encoder as if the host had no autocast, inference or dispatch mode active.

    Otherwise autocast would round what is projected, a default device would move scratch memory,
    scratch memory made in inference mode could not be written to outside of it, and a mode that
    counts or logs the host's operations would count ours.
    """
    with ExitStack() as stack:
        if _len_torch_function_stack():
            stack.enter_context(torch._C.DisableTorchFunction())
        if _len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.no_grad())
        yield
