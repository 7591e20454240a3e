"""Parameters and what is added to them, every so many host steps and a little at each of these.

Each rule of `hooks` has rounds of its own: all rows of its streams, in their order, as many at the end of a
host step as `mib_per_step` holds, so that no step is much longer than the others. The next round begins
`every` steps after the one before began, or when that has ended. Each packet holds some rows of a parameter
and says which (`encodings.parts`), under the tags of the moment when they were copied: within a round rows
of different packets may be of different versions of the weights.

An update is the row less what it was in the round before, in the parameter's own dtype, so that each row's
is over one round. What it was is kept where the parameter is: a copy of it. The first round keeps and sends
nothing.

The host's own tensors are read and never written; nothing here is in a graph, draws a number or waits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch

from asys_bench.capture.capture import Capture
from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.hooks.gradient_hooks import rows_at
from asys_bench.capture.host_state import is_graph_captured, undisturbed, unreadable
from asys_bench.capture.shards import local
from asys_bench.contracts.packet import Kind

log = logging.getLogger(__name__)

PACKET_BYTES = 1 << 20
"""Of a packet, at most: a small bus need not find room for a whole step's rows at once."""


@dataclass(eq=False)
class WeightStream:
    """A parameter, what sends its rows, and of updates what it was in the round before."""

    stream: HookStream
    capture: Capture
    before: torch.Tensor | None = None


class WeightRounds:
    """The rounds of one rule; `step` is called at the end of each host step.

    every: host steps. step_bytes: of the parameters that one step copies, at most; but one row (of a
        convolution, the rows of one channel) however long it is. packet_bytes: the longest payload of the
        bus.
    """

    def __init__(
        self,
        streams: Sequence[WeightStream],
        every: int,
        step_bytes: int,
        packet_bytes: int,
        first_step: int,
    ) -> None:
        self._streams, self._every, self._step_bytes = tuple(streams), every, step_bytes
        self._packet_bytes = min(step_bytes, packet_bytes, PACKET_BYTES)
        self._due = first_step
        self._work: Iterator[int] | None = None
        self._is_slow = False
        self._lock = threading.Lock()

    def step(self, host_step: int) -> None:
        """Copy what this step may; any thread."""
        if not self._lock.acquire(blocking=False):
            return  # another thread marks a step, too
        try:
            if self._work is None and host_step >= self._due:
                self._due = host_step + self._every
                self._work = self._round()
            if self._work is not None and not is_graph_captured():
                with undisturbed():
                    self._go_on(self._work)
                if self._work is not None and host_step >= self._due - 1:
                    self._say_slow()
        finally:
            self._lock.release()

    def _go_on(self, work: Iterator[int]) -> None:
        taken = 0
        for nbytes in work:
            taken += nbytes
            if taken + self._packet_bytes > self._step_bytes:
                return
        self._work = None

    def _say_slow(self) -> None:
        if not self._is_slow:
            self._is_slow = True
            log.info(
                "hooks %s: a round of the parameters takes more than the %d steps of `every` at %.3g MiB a "
                "step: rounds follow one another",
                ", ".join(one.stream.name for one in self._streams[:3]),
                self._every,
                self._step_bytes / (1 << 20),
            )

    def _round(self) -> Iterator[int]:
        """Sends all rows; the bytes of each packet."""
        for one in self._streams:
            if one.stream.off:
                continue
            try:
                yield from self._rows(one)
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
                one.before = None
                one.capture.leave_out(error)

    def _rows(self, one: WeightStream) -> Iterator[int]:
        """A packet is a run of indices of the first dimension."""
        now = _now(one)
        length, rows_each = (int(now.shape[0]), prod(now.shape[1:-1])) if now.ndim > 1 else (1, 1)
        row_bytes = rows_each * (now.shape[-1] if now.ndim else 1) * now.element_size()
        if not length * row_bytes:
            return
        kept = True
        if one.stream.kind == Kind.UPDATE and not _fits(one.before, now):
            one.before = torch.empty_like(now, memory_format=torch.contiguous_format)
            kept = False
        each = max(1, self._packet_bytes // row_bytes)
        for first in range(0, length, each):
            count = min(each, length - first)
            self._take(one, first, count, first * rows_each, kept)
            yield count * row_bytes

    def _take(self, one: WeightStream, first: int, count: int, row: int, kept: bool) -> None:
        """Send indices `first` .. `first + count` of a parameter, or their update where one was kept."""
        sent = now = _run(_now(one), first, count)  # anew: a host may give it other memory
        if one.before is not None:
            before = _run(one.before, first, count)
            sent = now - before
            before.copy_(now)
        if kept:
            stream = one.stream
            assert stream.part is not None
            rows_RD = sent.reshape(-1, sent.shape[-1])
            training = getattr(stream.point.module, "training", None)
            ticket = one.capture.draw(rows_RD, training, rows_at(stream.part.place_from(row)))
            if ticket is not None:
                one.capture.send(rows_RD, ticket)


def _now(one: WeightStream) -> torch.Tensor:
    """The parameter in this rank's memory, with its rows in the last dimension.

    Raises:
        ValueError: it cannot be read.
    """
    stream, parameter = one.stream, one.stream.point.parameter
    assert parameter is not None
    now = local(parameter.detach(), any_part=True)
    why = unreadable(now)
    if why is not None:
        raise ValueError(why)
    return now if stream.rows is None else stream.rows.view(now)


def _fits(before: torch.Tensor | None, now: torch.Tensor) -> bool:
    return (
        before is not None
        and before.shape == now.shape
        and before.dtype == now.dtype
        and before.device == now.device
    )


def _run(whole: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """A view; a tensor of one dimension or none is one row."""
    return whole.narrow(0, first, count) if whole.ndim > 1 else whole.reshape(1, -1)
