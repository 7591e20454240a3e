"""The model inside the wrappers that training loops put around it."""

from __future__ import annotations

import torch


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel and torch.compile.

    Hook names are then the same with and without the wrapper.
    """
    while True:
        if isinstance(
            model, torch.nn.parallel.DistributedDataParallel | torch.nn.parallel.DataParallel
        ):
            model = model.module
        elif "_orig_mod" in model._modules and isinstance(
            model._modules["_orig_mod"], torch.nn.Module
        ):
            model = model._modules["_orig_mod"]
        else:
            return model


def is_compiled_in_place(model: torch.nn.Module) -> bool:
    """`model.compile()` was called: hooks on the module itself become part of the graph."""
    return getattr(model, "_compiled_call_impl", None) is not None
