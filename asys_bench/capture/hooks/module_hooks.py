"""The hooks on modules that capture outputs and inputs.

Each is an object and not a closure, so that a copy of the model gets an inert one (`own_hooks`). Under
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
from asys_bench.capture.shards import local
from asys_bench.capture.tags.text import RowTokens
from asys_bench.capture.tags.token_places import TokenPlaces
from asys_bench.contracts.capture_port import PORT_NOT_MINE, PORT_REFUSED

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class ModuleHook(LiveHook):
    """What the hooks of this file share: finding the tensor of a call, and what follows `direct`.

    places: of a model that takes text: which tokens the rows are.
    """

    def __init__(
        self, stream: HookStream, capture: Capture, places: TokenPlaces | None = None
    ) -> None:
        self.stream, self.number, self.places = stream, stream.number, places
        self.path, self.phase = stream.path, stream.phase
        self.direct = capture.direct if self.path is None else not_direct
        self.observe = capture.observe
        self.refused, self.leave_out = capture.refused, capture.leave_out

    def select(self, args: Args, kwargs: Kwargs, output: Any) -> Tensor | None:
        """The tensor to capture, of a call with these arguments; also traced."""
        raise NotImplementedError

    def searched(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """What `select` found nothing in."""
        raise NotImplementedError

    def tokens(
        self, places: TokenPlaces, tensor: Tensor | None, args: Args, kwargs: Kwargs
    ) -> RowTokens | None:
        """Which tokens the rows of `tensor` are."""
        raise NotImplementedError

    def traced_number(self, traced: Tensor, args: Args, kwargs: Kwargs) -> int:
        """The number of the operator in a compiled graph; traced."""
        return self.number

    def trace(self, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
        """Leave the operator in the graph, if the module is in the hook's phase; traced."""
        if self.phase is None or self.phase == module.training:
            traced = self.select(args, kwargs, output)
            if traced is not None:
                capture_op(traced, self.traced_number(traced, args, kwargs))

    def finish(self, outcome: int, module: Any, args: Args, kwargs: Kwargs, output: Any) -> None:
        """`direct` has answered `outcome`, and not PORT_ACCEPTED: the general path. Never raises."""
        if self.stream.off:
            return
        try:
            if outcome == PORT_REFUSED:
                self.refused()
                return
            tensor = self.select(args, kwargs, output)
            if tensor is None:
                unwatched(self.stream.nothing_at, self.searched(args, kwargs, output))
            elif type(tensor) is not Tensor:
                tensor = local(tensor)
            places = self.places
            tokens = None if places is None else self.tokens(places, tensor, args, kwargs)
            training = getattr(module, "training", None)
        except Exception as error:  # noqa: BLE001 - fail open: a host's own class may do anything
            self.leave_out(error)
            return
        self.observe(tensor, training, tokens)


class OutputHook(ModuleHook):
    """A forward hook: captures the module's output. (`contracts.capture_port.ForwardHook`)"""

    def select(self, args: Args, kwargs: Kwargs, output: Any) -> Tensor | None:
        if type(output) is Tensor and self.path is None:
            return output
        return select_tensor(output, self.path)

    def searched(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        return output

    @untraced
    def __call__(self, module: Any = None, args: Any = (), *rest: Any, **_: Any) -> None:
        output = rest[-1] if rest else None
        if is_dynamo_compiling():
            self.trace(module, (), {}, output)
            return
        try:
            in_phase = self.phase is None or self.phase is module.training
            outcome = self.direct(output) if in_phase else PORT_NOT_MINE
        except Exception:  # noqa: BLE001 - called by somebody with something else than a module
            outcome = PORT_NOT_MINE
        if outcome:  # not PORT_ACCEPTED
            self.finish(outcome, module, (), {}, output)

    @untraced
    def otherwise(self, outcome: int, module: Any, output: Any) -> None:
        """The compiled `__call__` has not done it."""
        self.finish(outcome, module, (), {}, output)


class InputHook(ModuleHook):
    """A forward pre-hook: captures what the module is called with."""

    def __init__(
        self, stream: HookStream, capture: Capture, places: TokenPlaces | None = None
    ) -> None:
        super().__init__(stream, capture, places)
        self.names = positions(stream.point.module)

    def select(self, args: Args, kwargs: Kwargs, output: Any) -> Tensor | None:
        if self.path is None and args and type(args[0]) is Tensor:
            return args[0]
        return select_input(args, kwargs, self.path, self.names)

    def searched(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        return {**dict(enumerate(args)), **kwargs}

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        if is_dynamo_compiling():
            self.trace(module, args, kwargs, None)
            return
        try:
            in_phase = self.phase is None or self.phase is module.training
            outcome = self.direct(args[0] if args else None) if in_phase else PORT_NOT_MINE
        except Exception:  # noqa: BLE001 - as above
            outcome = PORT_NOT_MINE
        if outcome:
            self.finish(outcome, module, args, kwargs, None)


class TextOutputHook(OutputHook):
    """As `OutputHook`, in a model that takes text: says which tokens the rows are.

    number_of_rows: names the stream in compiled graphs where the module's first input has the leading
    dimensions of what is captured.
    """

    def __init__(
        self, stream: HookStream, capture: Capture, places: TokenPlaces, number_of_rows: int
    ) -> None:
        super().__init__(stream, capture, places)
        self.number_of_rows = number_of_rows

    def tokens(
        self, places: TokenPlaces, tensor: Tensor | None, args: Args, kwargs: Kwargs
    ) -> RowTokens | None:
        return places.of_output(tensor, args, kwargs)

    def traced_number(self, traced: Tensor, args: Args, kwargs: Kwargs) -> int:
        keeps = _keeps_leading(select_input(args, kwargs, None, {}), traced)
        return self.number_of_rows if keeps else self.number

    @untraced
    def __call__(self, module: Any = None, args: Any = (), *rest: Any, **_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        output = rest[-1] if rest else None
        kwargs = rest[0] if len(rest) > 1 and isinstance(rest[0], dict) else {}
        if is_dynamo_compiling():
            self.trace(module, args, kwargs, output)
        elif not self.stream.off:
            unwatched(self.finish, PORT_NOT_MINE, module, args, kwargs, output)


class TextInputHook(InputHook):
    """As `InputHook`, in a model that takes text.

    number_of_rows: names the stream in compiled graphs.
    """

    def __init__(
        self, stream: HookStream, capture: Capture, places: TokenPlaces, number_of_rows: int
    ) -> None:
        super().__init__(stream, capture, places)
        self.number_of_rows = number_of_rows

    def tokens(
        self, places: TokenPlaces, tensor: Tensor | None, args: Args, kwargs: Kwargs
    ) -> RowTokens | None:
        return places.of_input(tensor)

    def traced_number(self, traced: Tensor, args: Args, kwargs: Kwargs) -> int:
        return self.number_of_rows

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        if is_dynamo_compiling():
            self.trace(module, args, kwargs, None)
        elif not self.stream.off:
            unwatched(self.finish, PORT_NOT_MINE, module, args, kwargs, None)


def _keeps_leading(given: Tensor | None, output: Tensor) -> bool:
    """Traced: [B, T, ...] came in and [B, T, D] went out."""
    return (
        given is not None
        and given.ndim >= 2
        and output.ndim == 3
        and given.shape[0] == output.shape[0]
        and given.shape[1] == output.shape[1]
    )
