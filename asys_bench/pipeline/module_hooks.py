"""The hooks on modules that capture outputs and inputs, and the one that counts forward passes.

Each is an object and not a closure, so that a copy of the model gets an inert one (`inert.py`). Under
torch.compile the same object is traced: `is_dynamo_compiling` is False at run time and True to the
tracer, which leaves `capture_op` in the graph and nothing of the run-time path. What the traced
branch reads is constant, so that no counter of ours ever makes the host compile again.

Others move hooks between modules and register them anew, with and without keyword arguments
(quantisation, `fuse_modules`): a hook takes its arguments in either form and raises in none.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import _current_graph_task_id as backward_task
from torch.compiler import is_dynamo_compiling

from asys_bench.contracts.capture_port import PORT_NOT_MINE, PORT_REFUSED
from asys_bench.pipeline import graph_op
from asys_bench.pipeline.capture import Capture, not_direct
from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.graph_op import capture_op
from asys_bench.pipeline.hook_stream import HookStream
from asys_bench.pipeline.host_state import unwatched
from asys_bench.pipeline.inert import LiveHook
from asys_bench.pipeline.selection import select_input, select_tensor
from asys_bench.pipeline.untraced import untraced


class OutputHook(LiveHook):
    """A forward hook: captures the module's output. (`contracts.capture_port.ForwardHook`)"""

    def __init__(self, stream: HookStream, capture: Capture) -> None:
        self.stream, self.observe, self.number = stream, capture.observe, stream.number
        self.path, self.phase = stream.path, stream.phase
        self.direct = capture.direct if self.path is None else not_direct
        self.refused, self.leave_out = capture.refused, capture.leave_out

    @untraced
    def __call__(self, module: Any = None, args: Any = (), *rest: Any, **_: Any) -> None:
        output = rest[-1] if rest else None
        if is_dynamo_compiling():
            if self.phase is None or self.phase == module.training:
                traced = select_tensor(output, self.path)
                if traced is not None:
                    capture_op(traced, self.number)
            return
        try:
            in_phase = self.phase is None or self.phase is module.training
            outcome = self.direct(output) if in_phase else PORT_NOT_MINE
        except Exception:  # noqa: BLE001 - called by somebody with something else than a module
            outcome = PORT_NOT_MINE
        if outcome:  # not PORT_ACCEPTED
            self.otherwise(outcome, module, output)

    @untraced
    def otherwise(self, outcome: int, module: Any, output: Any) -> None:
        """`direct` has not done it."""
        if self.stream.off:
            return
        try:
            if outcome == PORT_REFUSED:
                self.refused()
                return
            tensor = output
            if type(output) is not Tensor or self.path is not None:
                tensor = select_tensor(output, self.path)
                if tensor is None:
                    unwatched(self.stream.nothing_at, output)
            training = getattr(module, "training", None)
        except Exception as error:  # noqa: BLE001 - fail open: a host's own class may do anything
            self.leave_out(error)
            return
        self.observe(tensor, training)


class InputHook(LiveHook):
    """A forward pre-hook: captures what the module is called with."""

    def __init__(self, stream: HookStream, capture: Capture) -> None:
        self.stream, self.observe, self.number = stream, capture.observe, stream.number
        self.path, self.phase = stream.path, stream.phase
        self.direct = capture.direct if self.path is None else not_direct
        self.refused, self.leave_out = capture.refused, capture.leave_out
        self.names = positions(stream.point.module)

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        if is_dynamo_compiling():
            if self.phase is None or self.phase == module.training:
                traced = select_input(args, kwargs, self.path, self.names)
                if traced is not None:
                    capture_op(traced, self.number)
            return
        try:
            training = getattr(module, "training", None)
            in_phase = self.phase is None or self.phase is training
            outcome = self.direct(args[0] if args else None) if in_phase else PORT_NOT_MINE
            if not outcome or self.stream.off:  # PORT_ACCEPTED
                return
            if outcome == PORT_REFUSED:
                self.refused()
                return
            if self.path is None and args and type(args[0]) is Tensor:
                tensor: Tensor | None = args[0]
            else:
                tensor = select_input(args, kwargs, self.path, self.names)
                if tensor is None:
                    unwatched(self.stream.nothing_at, {**dict(enumerate(args)), **kwargs})
        except Exception as error:  # noqa: BLE001 - as above
            self.leave_out(error)
            return
        self.observe(tensor, training)


class ForwardCounter(LiveHook):
    """A forward pre-hook on the whole model: a new forward pass, so a new microbatch."""

    def __init__(self, model: torch.nn.Module, clock: StepClock) -> None:
        self.model, self.clock, self.number = model, clock, graph_op.reserve_number()

    @untraced
    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if is_dynamo_compiling():
            traced = select_input(args, kwargs, None, {})
            if traced is not None:
                capture_op(traced, self.number)
            return
        # Replicas of DataParallel and recomputation are part of a pass that was counted.
        if module is self.model and backward_task() == -1:
            self.clock.forward_started()

    def count(self, _: torch.Tensor) -> None:
        """The receiver of the traced call."""
        if backward_task() == -1:
            self.clock.forward_started()


def positions(module: torch.nn.Module) -> Mapping[str, int]:
    """Parameter name -> position in a call of `module`; empty when its forward has no signature."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {name: index for index, name in enumerate(parameters)}
