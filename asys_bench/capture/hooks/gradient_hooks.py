"""The hooks that capture gradients of outputs and of parameters.

Output gradients come through tensor hooks, which the engine calls with the sum over all uses of the
tensor; no node is added to the autograd graph, so the order in which the host's gradients are summed
(and with it their last bit) is the host's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle, unserializable_hook

from asys_bench.capture.capture import Capture, Ticket
from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.hooks.graph_op import capture_op, untraced
from asys_bench.capture.hooks.own_hooks import LiveHook
from asys_bench.capture.host_state import TRANSFORMED, is_transformed, unwatched
from asys_bench.capture.points.selection import all_tensors, select_tensor
from asys_bench.capture.shards import local
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.text import RowTokens
from asys_bench.capture.tags.token_places import TokenPlaces
from asys_bench.contracts.packet import NO_TEXT, NO_TOKEN_POSITION
from asys_bench.contracts.tensor_memory import memory_fault
from asys_bench.contracts.torch_internals import (
    NO_GRAPH_TASK,
    current_graph_task_id,
    view_base,
)

TRACES_TENSOR_HOOKS = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 13)
"""torch.compile before 2.13 breaks the graph at a tensor hook on an intermediate: it gets none."""

_MANY_LEAVES = 64


class OutputGradientHook(LiveHook):
    """A forward hook that puts a tensor hook on the module's output.

    A tensor hook sees the gradient of the value that the tensor had when it was registered, whatever
    the host writes into the tensor later. With one exception: an output that is a view (Linear of
    three dimensions returns one) loses its node when it is written to, and with it the hook. So the
    tensor that it views gets a hook too, which speaks up when the other one has not.
    """

    def __init__(
        self,
        stream: HookStream,
        capture: Capture,
        clock: StepClock,
        places: TokenPlaces | None = None,
    ) -> None:
        self.stream, self.draw, self.send = stream, capture.draw, capture.send
        self.places = places
        self.leave_out = capture.leave_out
        self.path, self.phase = stream.path, stream.phase
        self.recompute = RecomputeFilter(stream, clock)
        self.leaves: dict[int, RemovableHandle] = {}

        number = stream.number

        def traced_gradient(gradient: Tensor) -> None:
            capture_op(gradient, number)

        self.traced_gradient = traced_gradient

    @untraced
    def __call__(self, module: Any = None, args: Any = (), *rest: Any, **_: Any) -> None:
        output = rest[-1] if rest else None
        if is_dynamo_compiling():
            if TRACES_TENSOR_HOOKS and (self.phase is None or self.phase == module.training):
                traced = select_tensor(output, self.path)
                if traced is not None and traced.requires_grad and torch.is_grad_enabled():
                    traced.register_hook(self.traced_gradient)  # type: ignore[no-untyped-call]
            return
        if self.stream.off:
            return
        try:
            if is_transformed():
                self.leave_out(TRANSFORMED)
            elif self.recompute.passes():
                unwatched(self._watch, module, (args, *rest[:-1]), output)
        except Exception as error:  # noqa: BLE001 - fail open
            self.leave_out(error)

    def _watch(self, module: Any, inputs: Any, output: Any) -> None:
        tensor = select_tensor(output, self.path)
        if tensor is None:
            self.stream.nothing_at(output)
        elif not tensor.requires_grad:
            self.stream.needs_no_gradient = True
            self.leave_out(None)
            return
        tokens = None
        here = None if tensor is None else local(tensor)
        if self.places is not None:
            args, *more = inputs
            tokens = self.places.of_output(here, args, more[0] if more else {})
        ticket = self.draw(here, getattr(module, "training", None), tokens)
        if ticket is not None and tensor is not None:
            base = _base_of_its_own(tensor, inputs) if here is tensor else None
            if base is None:
                self.register(tensor, ticket)
            else:
                self._register_view(tensor, base, ticket)

    def register(self, tensor: Tensor, ticket: Ticket) -> None:
        send = self.send

        @unserializable_hook  # type: ignore[untyped-decorator]
        def on_gradient(gradient: Tensor | None) -> None:
            send(gradient, ticket)

        handle = tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        if tensor.is_leaf:  # it outlives its graph, and so would one hook per forward call
            self._replace(id(tensor), handle)

    def _register_view(self, tensor: Tensor, base: Tensor, ticket: Ticket) -> None:
        send, shape, sent = self.send, tensor.shape, False

        @unserializable_hook  # type: ignore[untyped-decorator]
        def on_gradient(gradient: Tensor | None) -> None:
            nonlocal sent
            sent = True
            send(gradient, ticket)

        def send_as_view(gradient: Tensor | None) -> None:
            if gradient is not None and memory_fault(gradient) is None:
                gradient = gradient.detach().reshape(shape)
            send(gradient, ticket)

        @unserializable_hook  # type: ignore[untyped-decorator]
        def on_gradient_of_base(gradient: Tensor | None) -> None:
            nonlocal sent
            try:
                if not sent:
                    unwatched(send_as_view, gradient)
            except Exception as error:  # noqa: BLE001 - it runs in the host's backward pass
                self.leave_out(error)
            sent = False  # a second backward pass may come

        tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]
        base.register_hook(on_gradient_of_base)  # type: ignore[no-untyped-call]

    def _replace(self, leaf: int, handle: RemovableHandle) -> None:
        before = self.leaves.pop(leaf, None)
        if before is not None:
            before.remove()
        if len(self.leaves) >= _MANY_LEAVES:
            alive = {k: h for k, h in self.leaves.items() if h.hooks_dict_ref() is not None}
            self.leaves = alive
        self.leaves[leaf] = handle

    def remove(self) -> None:
        """Take the hooks off tensors that outlive their graph."""
        for handle in self.leaves.values():
            handle.remove()
        self.leaves.clear()


def _base_of_its_own(tensor: Tensor, inputs: Any) -> Tensor | None:
    """What `tensor` is another shape of, if the module has made it; None if it is no such view."""
    base = view_base(tensor)
    if (
        base is None
        or base.grad_fn is None
        or base.numel() != tensor.numel()
        or not (base.is_contiguous() and tensor.is_contiguous())
        or any(given is base or view_base(given) is base for given in all_tensors(inputs))
    ):
        return None
    return base


class RecomputeFilter:
    """Which forward calls build the graph that gradients will flow through.

    Non-reentrant activation checkpointing runs forward with a graph and, in backward, once more
    without one that counts. Reentrant checkpointing runs it without a graph first, and the call in
    backward is the one that counts. So a recomputation is real if a call without a graph is open.
    """

    def __init__(self, stream: HookStream, clock: StepClock) -> None:
        self._stream, self._clock = stream, clock
        self._weights = (-1, -1)
        self._without_graph = 0

    def passes(self) -> bool:
        """Called for each forward call: whether its gradients are to be captured."""
        if self._clock.paused:  # skipped by the sampler's decision, and counted there
            return torch.is_grad_enabled()
        in_backward = current_graph_task_id() != NO_GRAPH_TASK
        weights = self._clock.own_tags[:2]  # nothing is recomputed with other weights
        if weights != self._weights:
            self._weights, self._without_graph = weights, 0
        if not torch.is_grad_enabled():
            if not in_backward:
                self._without_graph += 1
            return False
        if not in_backward:
            return True
        if self._without_graph > 0:
            self._without_graph -= 1
            return True
        self._stream.recomputed.add()
        return False


class ParameterGradientHook(LiveHook):
    """A hook that runs when a parameter's `.grad` has been added to.

    It captures `.grad` as it then stands: over several backward passes without `zero_grad` that is
    the sum so far. The tags are those of the moment of the backward pass.
    """

    def __init__(self, stream: HookStream, capture: Capture) -> None:
        self.stream, self.module, self.number = stream, stream.point.module, stream.number
        self.place = None if stream.part is None else rows_at(stream.part.place)
        self.draw, self.send, self.leave_out = capture.draw, capture.send, capture.leave_out

    @untraced
    def __call__(self, parameter: Tensor, *_: Any) -> None:
        if is_dynamo_compiling():  # compiled autograd
            if parameter.grad is not None:
                capture_op(parameter.grad, self.number)
            return
        if self.stream.off:
            return
        try:
            unwatched(self._take, parameter)
        except Exception as error:  # noqa: BLE001 - fail open
            self.leave_out(error)

    def _take(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:  # an optimizer that steps in backward has already taken it
            self.stream.explain("the gradient was gone before it could be captured")
        ticket = self.draw(gradient, getattr(self.module, "training", None), self.place)
        if ticket is not None and gradient is not None:
            self.send(gradient, ticket)


def rows_at(place: bytes) -> RowTokens:
    """What says of a packet which rows of a parameter it holds."""
    return RowTokens(NO_TEXT, None, NO_TOKEN_POSITION, None, place)
