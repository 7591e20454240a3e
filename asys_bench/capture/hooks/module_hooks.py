"""The hooks on modules that capture outputs and inputs.

Each is an object and not a closure, so that a copy of the model gets an inert one (`inert.py`). Under
torch.compile the same object is traced: `is_dynamo_compiling` is False at run time and True to the
tracer, which leaves `capture_op` in the graph and nothing of the run-time path. What the traced
branch reads is constant, so that no counter of ours ever makes the host compile again.

Others move hooks between modules and register them anew, with and without keyword arguments
(quantisation, `fuse_modules`): a hook takes its arguments in either form and raises in none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from asys_bench.capture.capture import Capture, not_direct
from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.hooks.graph_op import capture_op, untraced
from asys_bench.capture.hooks.own_hooks import LiveHook
from asys_bench.capture.host_state import unwatched
from asys_bench.capture.points.selection import positions, select_input, select_tensor
from asys_bench.capture.tags.token_places import TokenPlaces
from asys_bench.contracts.capture_port import PORT_NOT_MINE, PORT_REFUSED


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


class TextOutputHook(LiveHook):
    """As `OutputHook`, in a model that takes text: says which tokens the rows are.

    number_of_rows: names the stream in compiled graphs where the module's first input has the leading
    dimensions of what is captured.
    """

    def __init__(
        self, stream: HookStream, capture: Capture, places: TokenPlaces, number_of_rows: int
    ) -> None:
        self.stream, self.capture, self.places = stream, capture, places
        self.path, self.phase = stream.path, stream.phase
        self.number, self.number_of_rows = stream.number, number_of_rows

    @untraced
    def __call__(self, module: Any = None, args: Any = (), *rest: Any, **_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        output = rest[-1] if rest else None
        kwargs = rest[0] if len(rest) > 1 and isinstance(rest[0], dict) else {}
        if is_dynamo_compiling():
            if self.phase is None or self.phase == module.training:
                traced = select_tensor(output, self.path)
                if traced is not None:
                    given = select_input(args, kwargs, None, {})
                    keeps = _keeps_leading(given, traced)
                    capture_op(traced, self.number_of_rows if keeps else self.number)
            return
        if not self.stream.off:
            unwatched(self._capture, module, args, kwargs, output)

    def _capture(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        try:
            tensor = output if type(output) is Tensor else None
            if tensor is None or self.path is not None:
                tensor = select_tensor(output, self.path)
                if tensor is None:
                    self.stream.nothing_at(output)
            tokens = self.places.of_output(tensor, args, kwargs)
            training = getattr(module, "training", None)
        except Exception as error:  # noqa: BLE001 - fail open: a host's own class may do anything
            self.capture.leave_out(error)
            return
        self.capture.observe(tensor, training, tokens)


class TextInputHook(LiveHook):
    """As `InputHook`, in a model that takes text."""

    def __init__(
        self, stream: HookStream, capture: Capture, places: TokenPlaces, number_of_rows: int
    ) -> None:
        self.stream, self.capture, self.places = stream, capture, places
        self.path, self.phase = stream.path, stream.phase
        self.number_of_rows = number_of_rows
        self.names = positions(stream.point.module)

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        if is_dynamo_compiling():
            if self.phase is None or self.phase == module.training:
                traced = select_input(args, kwargs, self.path, self.names)
                if traced is not None:
                    capture_op(traced, self.number_of_rows)
            return
        if not self.stream.off:
            unwatched(self._capture, module, args, kwargs)

    def _capture(self, module: Any, args: Any, kwargs: Any) -> None:
        try:
            tensor = select_input(args, kwargs, self.path, self.names)
            if tensor is None:
                self.stream.nothing_at({**dict(enumerate(args)), **kwargs})
            tokens = self.places.of_input(tensor)
            training = getattr(module, "training", None)
        except Exception as error:  # noqa: BLE001 - as above
            self.capture.leave_out(error)
            return
        self.capture.observe(tensor, training, tokens)


def _keeps_leading(given: Tensor | None, output: Tensor) -> bool:
    """Traced: [B, T, ...] came in and [B, T, D] went out."""
    return (
        given is not None
        and given.ndim >= 2
        and output.ndim == 3
        and given.shape[0] == output.shape[0]
        and given.shape[1] == output.shape[1]
    )
