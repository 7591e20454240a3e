"""Which tokens the rows of a captured tensor are: decided when the packet is made, never by counting.

A text in scope has B sequences of T tokens (`text_inputs`). The rows of a tensor are its tokens, in
order, only if

- the tensor is [B, T, D] and what the module was called with has the leading dimensions [B, T] too, or
- the tensor is [B * T, D] and what the module was called with is the memory of a tensor [B, T, ...],
  flattened: a view of it, contiguous, with the same first element and as many.

Sizes can agree by chance: B = T fits a module that puts time first, T = D one that puts channels
first, and T = S the states of another sequence,
unless the module is given those beside. A call in which another reading fits counts only for a
hook that was seen to follow its text in a call where none did. A hook that was called with something
else once is not believed again. What is no token row travels whole, without a number, and is said once
per hook in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.host_state import address, is_graph_captured, is_transformed
from asys_bench.capture.points.rows import LAST
from asys_bench.capture.points.selection import all_tensors, first_tensor, positions
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.text import RowTokens, Text
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.contracts.packet import NO_TEXT
from asys_bench.contracts.torch_internals import (
    NO_GRAPH_TASK,
    current_graph_task_id,
    view_base,
)


class TokenPlaces:
    """Of one hook. Any thread may ask."""

    def __init__(self, stream: HookStream, clock: StepClock, inputs: TextInputs) -> None:
        self._stream, self._clock, self._inputs = stream, clock, inputs
        self._names = positions(stream.point.module)
        self._embeds = isinstance(stream.point.module, torch.nn.Embedding)
        self._follows = self._strays = False
        self._said: set[str] = set()

    def of_output(
        self, tensor: torch.Tensor | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> RowTokens | None:
        """The tokens that the rows of `tensor`, made from these arguments, are."""
        if tensor is None or current_graph_task_id() != NO_GRAPH_TASK:
            return None
        text = self._text()
        if text is None:
            return None
        given = self._called_with(args, kwargs)
        return self._rows(text, tensor, given, (args, kwargs) if text.others else None)

    def of_input(self, tensor: torch.Tensor | None) -> RowTokens | None:
        """The tokens that the rows of `tensor`, which the module is called with, are."""
        if tensor is None or current_graph_task_id() != NO_GRAPH_TASK:
            return None
        text = self._text()
        return None if text is None else self._rows(text, tensor, tensor)

    def _text(self) -> Text | None:
        frame = self._clock.call
        text = frame.text if frame is not None else None
        if text is None and self._inputs.is_text and not is_graph_captured():
            self._say(
                "is called outside of what takes the text, or beside another input: its rows carry "
                "no tokens, and rows of padding among them are captured like any other"
            )
        return text

    def _rows(
        self, text: Text, tensor: torch.Tensor, given: torch.Tensor | None, call: Any = None
    ) -> RowTokens | None:
        batch, length = text.shape
        if tensor.is_nested or given is None or given.is_nested:
            return None
        shape = tuple(tensor.shape)
        turned = self._stream.rows
        if not batch * length or is_transformed():
            return None
        if turned is not None and turned.axis_of(shape) not in (LAST, len(shape) - 1):
            given = None  # rows of channels
        came = tuple(given.shape) if given is not None else ()
        if given is not None and came[:2] == text.shape and given.ndim >= 2:
            fits = len(shape) == 3 and shape[:2] == text.shape
            ambiguous = _is_other(given, text, call) or _is_ambiguous(shape) or _is_ambiguous(came)
            if self._embeds and text.ids_BT is not None and address(given) == address(text.ids_BT):
                ambiguous = False  # an embedding of the ids themselves
        elif given is not None and (base := _flattened(given, text.shape)) is not None:
            fits = len(shape) == 2 and shape[0] == batch * length
            ambiguous = _is_other(given, text, call) or _is_ambiguous(base) or shape[0] in shape[1:]
        else:
            self._strays = True
            fits = ambiguous = False
        if fits and not ambiguous:
            self._follows = True
        if fits and not self._strays and (not ambiguous or self._follows):
            return RowTokens(text.number, text.kept, text.position, text.real_BT)
        if text.number != NO_TEXT or text.kept is not None or text.real_BT is not None:
            why = (
                "may be the tokens in more than one order (sizes are equal by chance)"
                if fits and not self._strays
                else "are not the tokens one by one"
            )
            self._say(
                f"rows of {list(shape)} in a text of {list(text.shape)} {why}: they carry no tokens, "
                "and rows of padding among them are captured like any other"
            )
        return None

    def _called_with(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
        """The first tensor of a call, in the order of the module's own parameters."""
        found = first_tensor(args)
        if found is not None:
            return found
        for name in (*self._names, *kwargs):
            found = first_tensor(kwargs.get(name))
            if found is not None:
                return found
        return None

    def _say(self, what: str) -> None:
        kind = what[:2]
        if kind not in self._said:
            self._said.add(kind)
            self._stream.say(what)


def _is_ambiguous(shape: tuple[int, ...]) -> bool:
    """Whether the first or the second size is also that of another dimension."""
    return any(
        size > 1 and size in (*shape[:at], *shape[at + 1 :]) for at, size in enumerate(shape[:2])
    )


def _is_other(given: torch.Tensor, text: Text, call: Any) -> bool:
    """Whether `given` may be another sequence's: of this length there is one, which is not given too."""
    alike = {address for leading, address in text.others if leading == text.shape}
    if not alike or call is None:
        return bool(alike)
    beside = {address(tensor) for tensor in all_tensors(list(call))} - {address(given)}
    return not alike <= beside


def _flattened(tensor: torch.Tensor, leading: tuple[int, int]) -> tuple[int, ...] | None:
    """The shape [B, T, ...] of the tensor whose memory `tensor` [B * T, ...] is, in its order; or None."""
    base = view_base(tensor)
    if (
        base is not None
        and base.ndim >= 3
        and tuple(base.shape[:2]) == leading
        and tensor.ndim == 2
        and tensor.shape[0] == leading[0] * leading[1]
        and tensor.numel() == base.numel()
        and address(tensor) == address(base)
        and tensor.is_contiguous()
        and base.is_contiguous()
    ):
        return tuple(base.shape)
    return None
