"""The hooks that open and close a call frame, and all that is done when a forward call begins.

Roots are what the user calls, the model inside its wrappers, and every module that takes text. The
outermost one that is called in a thread opens the frame, and then, in this order:

1. a host step begins, if calls are counted as steps and it is not the first,
2. the call is the next microbatch of its step,
3. the frame keeps the tags: captures of this thread carry them until the call returns,
4. the text is read from the arguments: ids, padding mask, positions (`tags.text_inputs`),
5. the packet of token rows is sent.

A root inside of it does 4 and 5 alone, if it was given another text or if no text is known yet. The
forward hook undoes what the pre-hook did, also when the host raises. Both are inert in copies of the
model, ignore replicas and recomputation in backward, and leave an operator in a compiled graph.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle

from asys_bench.capture.hooks import graph_op
from asys_bench.capture.hooks.graph_op import capture_op, untraced
from asys_bench.capture.hooks.own_hooks import LiveHook
from asys_bench.capture.host_state import is_transformed, unwatched
from asys_bench.capture.points.selection import first_tensor, select_input
from asys_bench.capture.tags.clock import CallFrame, StepClock
from asys_bench.capture.tags.text import TextReader
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.contracts.torch_internals import (
    CALL_CODE,
    NO_GRAPH_TASK,
    current_graph_task_id,
)

log = logging.getLogger(__name__)


class Root:
    """One root module: what its two hooks share.

    opened, beside, closed, mask: numbers of its operators in a compiled graph.
    """

    def __init__(
        self, module: torch.nn.Module, calls: ForwardCalls, reader: TextReader | None
    ) -> None:
        self.module, self.calls, self.reader = module, calls, reader
        self.opened = graph_op.reserve_number()
        self.mask = graph_op.reserve_number()
        self.beside = graph_op.reserve_number()
        self.closed = graph_op.reserve_number()
        self._traced = threading.local()

    def receive_mask(self, mask: torch.Tensor) -> None:
        """The receiver of a traced call's mask, which comes before its ids."""
        self._traced.mask = mask

    def receive_opened(self, first: torch.Tensor) -> None:
        """The receiver of a traced call: its ids, or its first tensor where it takes none."""
        given: dict[str, Any] = {}
        if self.reader is not None and self.reader.takes_ids:
            given = {"input_ids": first, "attention_mask": getattr(self._traced, "mask", None)}
        self._traced.mask = None
        self.calls.enter(self, (), given)

    def receive_beside(self, _: torch.Tensor) -> None:
        """The receiver of a traced call with another input, of which only the leading tensor comes."""
        self._traced.mask = None
        self.calls.enter(self, (), {}, is_readable=False)

    def receive_closed(self, _: torch.Tensor) -> None:
        self.calls.leave(self.module)


class BeginCall(LiveHook):
    """The forward pre-hook (with keyword arguments) of a root."""

    def __init__(self, root: Root) -> None:
        self.root = root

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        root = self.root
        if is_dynamo_compiling():
            ids, mask, is_beside = None, None, False
            if root.reader is not None and root.reader.takes_ids:
                ids = first_tensor(root.reader.ids(args, kwargs))
                mask = first_tensor(root.reader.argument("attention_mask", args, kwargs))
                is_beside = len(list(root.reader.other_inputs(args, kwargs))) > 0
            if ids is not None and mask is not None:
                capture_op(mask, root.mask)
            traced = ids if ids is not None else select_input(args, kwargs, None, {})
            if traced is not None:
                capture_op(traced, root.beside if is_beside else root.opened)
            return
        if module is root.module:  # and no replica of DataParallel
            root.calls.enter(root, args, kwargs)


class EndCall(LiveHook):
    """The forward hook of a root; registered so that it is called when the host raises, too."""

    def __init__(self, root: Root) -> None:
        self.root = root

    @untraced
    def __call__(self, module: Any = None, *rest: Any, **_: Any) -> None:
        if is_dynamo_compiling():
            traced = first_tensor(rest[-1]) if rest else None
            if traced is not None:
                capture_op(traced, self.root.closed)
            return
        if module is self.root.module:
            self.root.calls.leave(module)


class BeginEmbedding(LiveHook):
    """The forward pre-hook of an embedding, which tells what is text where no name does.

    number: of its operator in a compiled graph.
    """

    def __init__(self, module: torch.nn.Module, calls: ForwardCalls) -> None:
        self.module, self.calls, self.number = module, calls, graph_op.reserve_number()

    @untraced
    def __call__(self, module: Any = None, args: Any = (), kwargs: Any = None, *_: Any) -> None:
        args = args if isinstance(args, tuple) else (args,)
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        ids = select_input(args, kwargs, None, {})
        if ids is None:
            return
        if is_dynamo_compiling():
            capture_op(ids, self.number)
            return
        if module is self.module:
            self.receive(ids)

    def receive(self, ids: torch.Tensor) -> None:
        self.calls.embedded(self.module, ids)


class ForwardCalls:
    """Frames of the forward calls of one model.

    roots: see the module docstring, outermost first.
    counts_forwards: count calls as microbatches; without, they are the host's to set.
    text: None for a model that takes no text.
    """

    def __init__(
        self,
        clock: StepClock,
        roots: Sequence[torch.nn.Module],
        *,
        counts_forwards: bool = True,
        text: TextInputs | None = None,
    ) -> None:
        self.clock, self.text = clock, text
        self.counts_forwards = counts_forwards
        inside = text.readers if text is not None else {}
        modules = list(dict.fromkeys([*roots, *inside]))  # by identity: modules are hashed so
        if text is None and not counts_forwards:
            modules = []  # nothing to do when a call begins
        self._roots = [
            Root(module, self, text.reader_of(module) if text is not None else None)
            for module in modules
        ]
        embeddings = text.embeddings if text is not None else []
        self._embeddings = [BeginEmbedding(module, self) for module in embeddings]
        self._handles: list[RemovableHandle] = []
        self._failed = False

    def attach_begin(self) -> Sequence[LiveHook]:
        """Register the pre-hooks, before any other hook of ours."""
        self._failed = False
        hooks = [BeginCall(root) for root in self._roots]
        for root, hook in zip(self._roots, hooks, strict=True):
            self._handles.append(root.module.register_forward_pre_hook(hook, with_kwargs=True))
            graph_op.receive(root.mask, root.receive_mask)
            graph_op.receive(root.opened, root.receive_opened)
            graph_op.receive(root.beside, root.receive_beside)
            graph_op.receive(root.closed, root.receive_closed)
        for begin in self._embeddings:
            handle = begin.module.register_forward_pre_hook(begin, with_kwargs=True)
            self._handles.append(handle)
            graph_op.receive(begin.number, begin.receive)
        return [*hooks, *self._embeddings]

    def attach_end(self) -> Sequence[LiveHook]:
        """Register the forward hooks, behind all others of ours."""
        hooks = [EndCall(root) for root in self._roots]
        for root, hook in zip(self._roots, hooks, strict=True):
            self._handles.append(root.module.register_forward_hook(hook, always_call=True))
        self._join_call_under_way()
        return hooks

    def detach(self) -> None:
        """Remove them. Idempotent."""
        while self._handles:
            self._handles.pop().remove()
        for root in self._roots:
            for number in (root.mask, root.opened, root.beside, root.closed):
                graph_op.stop_receiving(number)
        for begin in self._embeddings:
            graph_op.stop_receiving(begin.number)

    def enter(
        self, root: Root, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_readable: bool = True
    ) -> None:
        """A root is called in this thread. Never raises.

        is_readable: the arguments are all of what it was called with.
        """
        if self._failed or current_graph_task_id() != NO_GRAPH_TASK:
            return
        try:
            frame = self.clock.call
            if frame is not None and self._is_left_over(frame, root.module):
                self.clock.end_call(frame)
                frame = None
            if frame is None:
                frame = self.clock.begin_call(counts_forwards=self.counts_forwards)
            frame.modules.append((root.module, frame.text, frame.offered))
            if self.text is not None and root.reader is not None:
                if is_transformed() or not is_readable:
                    frame.text = frame.offered = None
                else:
                    unwatched(self.text.enter, frame, root.reader, args, kwargs, self.clock)
        except Exception as error:  # noqa: BLE001 - fail open: nothing of ours may reach the host
            self._fail(error)

    def embedded(self, module: torch.nn.Module, ids: torch.Tensor) -> None:
        """An embedding is called in this thread. Never raises."""
        if self.text is None or self._failed or current_graph_task_id() != NO_GRAPH_TASK:
            return
        if not is_transformed():
            unwatched(self.text.embedded, self.clock.call, module, ids, self.clock)

    def leave(self, module: torch.nn.Module) -> None:
        """A root has returned or raised. Never raises."""
        if current_graph_task_id() != NO_GRAPH_TASK:
            return
        try:
            frame = self.clock.call
            if frame is None or not frame.is_in(module):
                return  # hooked while it was under way
            while frame.modules:
                entered, frame.text, frame.offered = frame.modules.pop()
                if entered is module:
                    break
            if not frame.modules:
                self.clock.end_call(frame)
                if self.text is not None:
                    self.text.ended()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)

    def _is_left_over(self, frame: CallFrame, module: torch.nn.Module) -> bool:
        """Whether the frame's call is over though its forward hook never came (an interrupt, or a
        host that clears hooks): the same module is entered again, and not by its own forward."""
        return frame.is_in(module) and len(_calls_under_way(module)) < 2

    def _join_call_under_way(self) -> None:
        """Hooks that are registered while the root is called (the script host found its model so)
        come too late for the pre-hook of that call: open its frame now."""
        if self._roots and self.clock.call is None:
            root = self._roots[0]
            under_way = _calls_under_way(root.module)
            if under_way:
                args, kwargs = under_way[0]
                self.enter(root, args, kwargs)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        log.warning(
            "forward calls are no longer told apart, after %s: %s (the host goes on)",
            type(error).__name__,
            error,
        )


def _calls_under_way(module: torch.nn.Module) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of the calls of `module` that this thread is in, innermost first."""
    found = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CALL_CODE and frame.f_locals.get("self") is module:
            found.append((frame.f_locals.get("args", ()), frame.f_locals.get("kwargs", {})))
        back = frame.f_back
        if back is None:
            break
        frame = back
    return found
