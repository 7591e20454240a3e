"""`asys::capture`: the operator that a hook becomes in a graph that torch.compile makes.

A hook that torch.compile traces cannot run our Python: it leaves one call of this operator in the
graph, which stays one graph. The operator is declared to have an effect, so it is not dead code though
it returns nothing, captures keep their order, and activation checkpointing does not repeat it. It is
transparent to autograd and takes any layout, so that neither the backward graph nor the strides of
`x` depend on it.

Rejected: a tensor that the operator "mutates" to stay alive. A graph saves it for its backward graph,
and the next capture anywhere else changes its version: the host's second forward pass before a
backward pass raised "modified by an inplace operation".

Beside numbers, a receiver is what the operator calls with the tensor when the graph runs. Numbers are
never reused, so that a graph compiled with a detached hook in it calls nobody.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.compiler import is_exporting

from asys_bench.contracts.torch_internals import (
    inductor_fuses_roundings,
    keeps_order,
    skip_frame,
)

Receiver = Callable[[torch.Tensor], None]
F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)

_rounding_is_explained = False
_receivers: dict[int, Receiver] = {}
_numbers = itertools.count()


def reserve_number() -> int:
    """A number for one hook; it has no receiver yet."""
    return next(_numbers)


def receive(number: int, receiver: Receiver) -> None:
    """Call `receiver` with what the hook `number` captures. It must not raise."""
    _receivers[number] = receiver


def stop_receiving(number: int) -> None:
    """Idempotent."""
    _receivers.pop(number, None)


def _capture(x: torch.Tensor, hook: int) -> None:
    receiver = _receivers.get(hook)
    if receiver is None:
        return
    # The compiler plans memory: the next kernel may write over `x`, which host memory does not
    # mind (it is copied now) and a device's side stream would not notice.
    receiver(x if x.is_cpu else x.clone())


def _capture_fake(x: torch.Tensor, hook: int) -> None:
    """Runs while a graph is traced."""
    global _rounding_is_explained
    if x.dtype not in (torch.bfloat16, torch.float16) or _rounding_is_explained:
        return
    if inductor_fuses_roundings():
        _rounding_is_explained = True
        log.warning(
            "a compiled model is captured in %s: inductor keeps intermediate results of such models "
            "in float32 where it can fuse, and a captured one is rounded as an uncompiled model "
            "would round it, so the last bit may differ from a run without hooks. To rule that out "
            "set torch._inductor.config.emulate_precision_casts = True, with and without hooks",
            str(x.dtype).removeprefix("torch."),
        )


_LIBRARY: Any = torch.library.Library("asys", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "capture(Tensor x, int hook) -> ()",
    # A CUDA graph would replay the copy without calling us: keep it out of one.
    tags=(torch.Tag.flexible_layout, torch.Tag.cudagraph_unsafe),
)
_LIBRARY.impl("capture", _capture, "CompositeExplicitAutograd")
_LIBRARY.impl("capture", torch.library.fallthrough_kernel, "Autograd")
# Inside of vmap there is no tensor of one call: nothing is captured, as outside of a graph.
_LIBRARY.impl("capture", lambda x, hook: None, "FuncTorchBatched")
torch.library.register_fake("asys::capture", _capture_fake, lib=_LIBRARY)
keeps_order("asys::capture", _LIBRARY)

_OPERATOR = torch.ops.asys.capture.default


def capture_op(x: torch.Tensor, hook: int) -> None:
    """What a traced hook leaves in the graph: the operator. An exported program gets nothing of ours, so
    that it loads and runs where this package is not."""
    if not is_exporting():
        _OPERATOR(x, hook)


def untraced(function: F) -> F:
    """Tell torch.compile not to compile `function` when it meets its frame outside of a graph: the frame
    runs as it is, and so does all that it calls. Called from a function that is being compiled,
    `function` is traced like any other.

    Hooks of a model whose class is not torch's run outside of the graph (they are called before the
    compiled frame), and so do hooks next to a graph break of the host's. Without this they would
    become graphs of their own, of one operator each, compiled again for every hook.
    """
    skip_frame(function)
    return function
