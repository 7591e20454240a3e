"""Frames of ours that torch.compile meets outside of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch._C._dynamo import eval_frame

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """A frame of `function` that torch.compile is handed by itself runs as it is, and so does all that
    it calls; called from a function that is being compiled it is traced like any other.

    Hooks of a model whose class is not torch's run outside of the graph (they are called before the
    compiled frame), and so do hooks next to a graph break of the host's. Without this they would
    become graphs of their own, of one operator each, compiled again for every hook.
    """
    skip = eval_frame._FrameAction.SKIP
    strategy = eval_frame._FrameExecStrategy(skip, skip)
    eval_frame.set_code_exec_strategy(function.__code__, strategy)
    return function
