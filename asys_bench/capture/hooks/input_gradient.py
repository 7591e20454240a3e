"""d(loss)/d(input) of a module, through that module alone, without a node in the host's graph.

`register_full_backward_hook` puts an identity node in front of the module. The engine then sums what
flows back through the module before it adds what flows past it, and floating-point sums depend on
their order: the host's weights would differ in the last bit. So instead

1. a pre-hook notes the graph edge that the input hangs on, and how many nodes there were,
2. the forward hook walks from the outputs back, over the nodes that the call made and no further,
   to the *border*: the nodes that send their gradient to that edge,
3. a hook on each border node, called after it has run, adds what it sends.

The gradient is complete when all have run, or, should one not take part in a backward pass, when the
node behind the edge runs. A module that returns its input itself has no border: what its output
receives is captured. The walk takes about a microsecond per node of the call, in calls that are
sampled; a module of more than MAX_NODES is left out, once with a line in the log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.compiler import is_dynamo_compiling

from asys_bench.capture.capture import Capture, Ticket
from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.hooks.gradient_hooks import OutputGradientHook, RecomputeFilter
from asys_bench.capture.hooks.graph_op import untraced
from asys_bench.capture.hooks.own_hooks import LiveHook
from asys_bench.capture.host_state import TRANSFORMED, is_transformed, undisturbed, unwatched
from asys_bench.capture.points.selection import all_tensors, positions, select_input
from asys_bench.capture.tags.clock import StepClock, Tags
from asys_bench.capture.tags.token_places import TokenPlaces
from asys_bench.contracts.tensor_memory import memory_fault
from asys_bench.contracts.torch_internals import next_sequence_number, sequence_number

MAX_NODES = 20_000


@dataclass(slots=True, eq=False)
class _Entry:
    """A call that has begun. node is None when there is nothing to capture."""

    tags: Tags
    tensor: Tensor | None = None
    node: Node | None = None
    output_nr: int = 0
    first_node: int = 0
    ticket: Ticket | None = None


class InputGradientHook:
    """The pre-hook and the forward hook of one stream; each is an object in the module's dictionary."""

    def __init__(
        self,
        stream: HookStream,
        capture: Capture,
        clock: StepClock,
        places: TokenPlaces | None = None,
    ) -> None:
        self.stream, self.capture, self.clock = stream, capture, clock
        self.places = places
        self.recompute = RecomputeFilter(stream, clock)
        self.names = positions(stream.point.module)
        self.of_output = OutputGradientHook(stream, capture, clock)
        self.before = _Before(self)
        self.after = _After(self)
        self._calls = threading.local()

    def enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        tags = self.clock.own_tags
        while stack and stack[-1].tags is not tags:
            stack.pop()  # that call raised: its forward hook never came
        entry = _Entry(tags)
        stack.append(entry)
        if is_transformed():
            self.capture.leave_out(TRANSFORMED)
            return
        if not self.recompute.passes():
            return
        tensor = select_input(args, kwargs, self.stream.path, self.names)
        if tensor is None:
            self.stream.nothing_at({**dict(enumerate(args)), **kwargs})
        elif not tensor.requires_grad:
            self.stream.needs_no_gradient = True
            self.capture.leave_out(None)
            return
        tokens = self.places.of_input(tensor) if self.places is not None else None
        entry.ticket = self.capture.draw(tensor, getattr(module, "training", None), tokens)
        if entry.ticket is not None and tensor is not None:
            edge = get_gradient_edge(tensor)
            entry.tensor, entry.node, entry.output_nr = tensor, edge.node, edge.output_nr
            entry.first_node = next_sequence_number()

    def leave(self, output: Any) -> None:
        stack = self._stack()
        entry = stack.pop() if stack else None
        if entry is None or entry.node is None or entry.ticket is None:
            return
        outputs = [t for t in all_tensors(output) if t.requires_grad]
        border = self._border(outputs, entry)
        if border is None:
            nodes = f"a call makes more than {MAX_NODES} nodes of the autograd graph"
            self.capture.leave_out(nodes)
        elif border:
            _Sum(self.stream, self.capture, entry, border)
        else:
            same = [t for t in outputs if t is entry.tensor]
            if same:
                self.of_output.register(same[0], entry.ticket)
            else:
                self.capture.leave_out("the output does not depend on the input")

    def _border(self, outputs: Sequence[Tensor], entry: _Entry) -> list[tuple[Node, int]] | None:
        """(node, index of its input) for each gradient sent to the edge; None: too many nodes."""
        target, output_nr, first = entry.node, entry.output_nr, entry.first_node
        border: list[tuple[Node, int]] = []
        waiting = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen: set[Node] = set()
        while waiting:
            node = waiting.pop()
            if node in seen or node is target or sequence_number(node) < first:
                continue
            seen.add(node)
            if len(seen) > MAX_NODES:
                return None
            for index, (upstream, number) in enumerate(node.next_functions):
                if upstream is target and number == output_nr:
                    border.append((node, index))
                elif upstream is not None and upstream not in seen:
                    waiting.append(upstream)
        return border

    def _stack(self) -> list[_Entry]:
        stack: list[_Entry] | None = getattr(self._calls, "stack", None)
        if stack is None:
            stack = self._calls.stack = []
        return stack


class _Sum:
    """Adds up what the border nodes send, in memory of its own, and captures the sum."""

    def __init__(
        self,
        stream: HookStream,
        capture: Capture,
        entry: _Entry,
        border: list[tuple[Node, int]],
    ) -> None:
        assert entry.node is not None
        assert entry.ticket is not None
        self._stream, self._capture, self._ticket = stream, capture, entry.ticket
        self._parts = self._expected = len(border)
        self._sum: Tensor | None = None
        self._fault: str | Exception | None = None
        for node, index in border:
            node.register_hook(self._guarded(partial(self._add, index)))
        if self._expected > 1:
            self._handle = entry.node.register_prehook(self._guarded(self._all_that_came))

    def _guarded(self, work: Callable[..., None]) -> Callable[..., None]:
        """`work` as a hook of autograd: the host's backward pass never sees it fail."""

        def hook(*gradients: Sequence[Tensor | None]) -> None:
            if self._stream.off:
                self._sum = None
                return
            try:
                unwatched(work, *gradients)
            except Exception as error:  # noqa: BLE001 - fail open
                self._capture.leave_out(error)

        return hook

    def _add(
        self,
        index: int,
        grad_inputs: Sequence[Tensor | None],
        grad_outputs: Sequence[Tensor | None],
    ) -> None:
        part = grad_inputs[index]
        self._parts -= 1
        if self._expected == 1:
            self._capture.send(part, self._ticket)
        elif part is not None and self._fault is None:
            try:
                self._take(part)
            except Exception as error:  # noqa: BLE001 - the other parts still come
                self._fault = error
        if self._parts == 0:
            self._finish()

    def _take(self, part: Tensor) -> None:
        self._fault = memory_fault(part)
        if self._fault is None:
            with undisturbed():
                self._sum = _added(self._sum, part)

    def _all_that_came(self, grad_outputs: Sequence[Tensor | None]) -> None:
        if self._parts != self._expected:
            self._finish()

    def _finish(self) -> None:
        total, fault = self._sum, self._fault
        self._sum = self._fault = None
        self._parts = self._expected  # a second backward may come
        if fault is not None:
            self._capture.leave_out(fault)
        elif total is not None:
            self._capture.send(total, self._ticket)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    """Memory of its own, as the engine would add: a dense gradient takes a sparse one."""
    if total is None:
        return part.clone()
    if total.layout is not torch.strided and part.layout is torch.strided:
        return part + total
    return total + part


class _Before(LiveHook):
    """The forward pre-hook."""

    def __init__(self, hook: InputGradientHook) -> None:
        self.hook = hook

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        # In a compiled graph there are no nodes to hang a hook on; `silent_hooks` explains it.
        if is_dynamo_compiling() or self.hook.stream.off:
            return
        args = args if isinstance(args, tuple) else (args,)
        try:
            unwatched(self.hook.enter, module, args, kwargs if isinstance(kwargs, dict) else {})
        except Exception as error:  # noqa: BLE001 - fail open
            self.hook.capture.leave_out(error)


class _After(LiveHook):
    """The forward hook."""

    def __init__(self, hook: InputGradientHook) -> None:
        self.hook = hook

    @untraced
    def __call__(self, module: Any = None, args: Any = (), *rest: Any, **_: Any) -> None:
        if is_dynamo_compiling() or self.hook.stream.off:
            return
        try:
            unwatched(self.hook.leave, rest[-1] if rest else None)
        except Exception as error:  # noqa: BLE001 - fail open
            self.hook.capture.leave_out(error)
