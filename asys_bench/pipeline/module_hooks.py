"""The hooks on modules that capture outputs and inputs, and the one that counts forward passes.

Each is an object and not a closure, so that a copy of the model gets an inert one (`inert.py`). Under
torch.compile the same object is traced: `is_dynamo_compiling` is False at run time and True to the
tracer, which leaves `capture_op` in the graph and nothing of the run-time path. What the traced
branch reads is constant, so that no counter of ours ever makes the host compile again.
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
from asys_bench.pipeline.inert import LiveHook
from asys_bench.pipeline.selection import select_input, select_tensor
from asys_bench.pipeline.untraced import untraced


class OutputHook(LiveHook):
    """A forward hook: captures the module's output. (`contracts.capture_port.ForwardHook`)"""

    def __init__(self, stream: HookStream, capture: Capture) -> None:
        self.stream, self.observe, self.number = stream, capture.observe, stream.number
        self.path, self.phase = stream.path, stream.phase
        self.direct = capture.direct if self.path is None else not_direct
        self.refused = capture.refused

    @untraced
    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if is_dynamo_compiling():
            if self.phase is None or self.phase == module.training:
                traced = select_tensor(output, self.path)
                if traced is not None:
                    capture_op(traced, self.number)
            return
        in_phase = self.phase is None or self.phase is module.training
        outcome = self.direct(output) if in_phase else PORT_NOT_MINE
        if outcome:  # not PORT_ACCEPTED
            self.otherwise(outcome, module, output)

    @untraced
    def otherwise(self, outcome: int, module: torch.nn.Module, output: Any) -> None:
        """`direct` has not done it."""
        if outcome == PORT_REFUSED:
            self.refused()
        elif type(output) is Tensor and self.path is None:
            self.observe(output, module.training)
        else:
            self._observe_part(output, module.training)

    def _observe_part(self, output: Any, training: bool) -> None:
        if self.stream.off:
            return
        try:
            tensor = select_tensor(output, self.path)
            if tensor is None:
                self.stream.nothing_at(output)
        except Exception as error:  # noqa: BLE001 - fail open: a host's own class may do anything
            self.stream.fail(error)
            return
        self.observe(tensor, training)


class InputHook(LiveHook):
    """A forward pre-hook (with keyword arguments): captures what the module is called with."""

    def __init__(self, stream: HookStream, capture: Capture) -> None:
        self.stream, self.observe, self.number = stream, capture.observe, stream.number
        self.path, self.phase = stream.path, stream.phase
        self.direct = capture.direct if self.path is None else not_direct
        self.refused = capture.refused
        self.names = positions(stream.point.module)

    @untraced
    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if is_dynamo_compiling():
            if self.phase is None or self.phase == module.training:
                traced = select_input(args, kwargs, self.path, self.names)
                if traced is not None:
                    capture_op(traced, self.number)
            return
        in_phase = self.phase is None or self.phase is module.training
        outcome = self.direct(args[0] if args else None) if in_phase else PORT_NOT_MINE
        if not outcome:  # PORT_ACCEPTED
            return
        if outcome == PORT_REFUSED:
            self.refused()
        elif self.path is None and args and type(args[0]) is Tensor:
            self.observe(args[0], module.training)
        else:
            self._observe_part(args, kwargs, module.training)

    def _observe_part(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> None:
        if self.stream.off:
            return
        try:
            tensor = select_input(args, kwargs, self.path, self.names)
            if tensor is None:
                self.stream.nothing_at({**dict(enumerate(args)), **kwargs})
        except Exception as error:  # noqa: BLE001 - as above
            self.stream.fail(error)
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
