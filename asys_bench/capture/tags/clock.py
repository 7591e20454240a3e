"""The step clock: where in its loop the host is, for the tags of packets, counters and a stop request.

A packet's tags are what the clock says when the module's forward is called; a gradient carries those
of the forward call that it belongs to. An outermost forward call (`CallFrame`) keeps the tags that it
began with, whatever other threads do meanwhile.

`tags`, `serial` and `cells` are those of one thread, the owner: the only one in a call, or the one that
marks steps while nobody is. Every other thread asks `here`.
"""

from __future__ import annotations

import logging
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any, Protocol

import torch

from asys_bench.capture.tags.moments import Moment, Moments
from asys_bench.capture.tags.text import Text
from asys_bench.contracts.capture_port import CLOCK_CELLS, CLOCK_OWNER, CLOCK_PAUSED, CLOCK_TOSSED
from asys_bench.contracts.packet import (
    CONSTANT_MICROBATCH,
    MAX_TEXT,
    NO_TEXT,
    NO_TOKEN_POSITION,
)
from asys_bench.contracts.stats import Slot, SlotField

clock_methods: Callable[..., Any] | None
"""None: it was not compiled."""
try:
    from asys_bench.contracts.native._steps import clock_methods
except ImportError:
    clock_methods = None

log = logging.getLogger(__name__)

Tags = tuple[int, int, int, int]
"""(host_step, weights_version, microbatch, token_position)"""

_MAX_MICROBATCH = CONSTANT_MICROBATCH - 1
_MAX_POSITION = 2**31 - 1
_SHOWN = struct.Struct(f"{CLOCK_TOSSED + 1}q")  # the cells up to and with that one
_NOBODY = 0
_OUTSIDE = 1 << 31
_CALLS_APART = 16
_MOST_CALLS = (1 << _CALLS_APART) - 1
"""Bits of a call index that count; those above tell threads and calls of one moment apart."""


class Labels(Protocol):
    """The part of `capture.labels.LabelSender` that is used here."""

    @property
    def notes_calls(self) -> bool: ...
    def send(
        self,
        step: int | Sequence[int] | None,
        microbatch: int | None,
        labels: Mapping[str, Any],
    ) -> None: ...


class _Moment:
    """A (host step, microbatch) of the clock; texts and calls are numbered within it."""

    __slots__ = ("calls", "texts")

    def __init__(self) -> None:
        self.calls = self.texts = 0


class CallFrame:
    """The outermost forward call of one thread, from its pre-hook to its forward hook.

    tags: as of its begin, and as the call itself changed them since.
    text: what the innermost module around that takes text was given (`text_inputs`); None: nothing.
    held: the text that held last in the call, also after the module that takes it has returned.
    sent: texts of the call whose token rows were sent.
    offered: a text of which it is not known yet which modules it is for.
    modules: root modules under way, outermost first, each with `text` and `offered` to go back to.
    """

    __slots__ = (
        "first_index",
        "held",
        "indices",
        "modules",
        "moment",
        "offered",
        "sent",
        "serial",
        "tags",
        "text",
    )

    def __init__(self, moment: _Moment, tags: Tags, serial: int, first_index: int) -> None:
        self.moment, self.tags, self.serial = moment, tags, serial
        self.first_index = first_index
        self.indices: dict[int, int] = {}
        self.text: Text | None = None
        self.held: Text | None = None
        self.offered: Text | None = None
        self.sent = 0
        self.modules: list[tuple[torch.nn.Module, Text | None, Text | None]] = []

    def is_in(self, module: torch.nn.Module) -> bool:
        """Whether `module` is a root that is under way."""
        return any(entered is module for entered, _, _ in self.modules)

    def next_index(self, stream: int, seen: int, counted: int) -> int:
        """Which call of `stream` this is. seen, counted: serial and index of its last counted call."""
        index = self.indices.get(stream)
        if index is None:
            index = counted if seen == self.serial else self.first_index - 1
        self.indices[stream] = index = self.first_index | (index + 1 & _MOST_CALLS)
        return index


class StepClock:
    """Implements `contracts.host.HostClock` over the host's slot of the stats page.

    tags: replaced whenever one of its parts changes, so that "is it the same object" means "is it
    the same forward pass".
    serial: counts those changes.
    cells: serial, tags and owner for compiled readers, and what was tossed for
        (`contracts.capture_port.CLOCK_*`).
    first_step: number of the step that the host is in when the clock starts (a resumed training).
    labels, moments: while somebody wants labels: who sends them, and the calls that they may be of.
    lock: held for a few assignments; a signal handler may come in.

    `step`, `step_to` and `weights_updated` are compiled where that can be
    (`contracts/native/steps_module.cpp`).
    """

    __slots__ = (
        "__dict__", "_alarm", "_alarm_step", "_aside", "_begun", "_buffer", "_forwards", "_home",
        "_host_counts_microbatches", "_microbatch", "_moment", "_now", "_now_serial", "_open", "_outside",
        "_page", "_paused", "_serials", "_slot", "_steps_cell", "_threads", "_token_position",
        "_versions_cell", "cells", "counting", "each_step", "first_step", "host_step", "labels", "lock",
        "moments", "owner", "rounds", "serial", "should_stop", "tags", "weights_version",
    )  # fmt: skip

    def __init__(self, slot: Slot, first_step: int = 0) -> None:
        self.first_step = self.host_step = first_step
        self.weights_version = 0
        self.should_stop = False
        self.serial = 0
        self.owner = self._home = get_ident()
        self.counting = False
        """Whether each outermost forward call after the first begins a step."""
        self._begun = False
        self._buffer = bytearray(8 * CLOCK_CELLS)
        self.cells = memoryview(self._buffer).cast("q")
        self._paused = False
        self._microbatch = 0
        self._aside: tuple[int, _Moment] | None = None
        self._token_position = NO_TOKEN_POSITION
        self._forwards = 0
        self._host_counts_microbatches = False
        self._moment = _Moment()
        self._serials = 0
        self._now: Tags = (first_step, 0, 0, NO_TOKEN_POSITION)
        self._now_serial = 0
        self.tags: Tags = self._now
        self._threads = threading.local()
        self._open = self._outside = 0
        self.lock = threading.RLock()
        self.labels: Labels | None = None
        self.moments: Moments | None = None
        self._alarm_step = sys.maxsize
        self._alarm: Callable[[int], int | None] | None = None
        self.each_step: Callable[[], None] | None = None
        """Called after each step; it must return at once."""
        self.rounds: Callable[[int], None] | None = None
        """Called after each step with its number: captures of parameters."""
        self._slot = slot
        self._retag()
        steps = slot.counter("host_steps")
        self._page, self._steps_cell = slot.cells, steps.cell
        self._versions_cell = slot.counter("weights_version").cell
        steps.set(first_step)

    @property
    def steps_made(self) -> int:
        """Host steps since the clock started."""
        return self.host_step - self.first_step

    def step(self, n: int = 1) -> None:
        """Mark `n` steps; from now on calls are not counted as steps."""
        with self.lock:
            self.counting = False
            self._home = get_ident()
            self._advance(self.host_step + n)
        self._stepped()

    def step_to(self, host_step: int) -> None:
        """The host is in step `host_step` of its own count; nothing changes if it was already."""
        with self.lock:
            self.counting = False
            if host_step == self.host_step:
                return
            self._home = get_ident()
            self._advance(host_step)
        self._stepped()

    def weights_updated(self) -> None:
        with self.lock:
            self.weights_version += 1
            self._retag()
            if self.moments is not None:
                self.moments.updated(self.host_step, self.weights_version)
        with suppress(ValueError):  # the run has ended, and its page with it
            self._page[self._versions_cell] = self.weights_version

    def report(self, name: str, value: float) -> None:
        self._slot.gauge(f"host_{name}").set(value)

    @property
    def label_horizon(self) -> int:
        """See `contracts.host.HostClock.label_horizon`."""
        return 0 if self.moments is None else max(1, self.moments.horizon)

    @property
    def notes_calls(self) -> bool:
        """Whether `label` without labels is of use now: calls are remembered that labels may come of."""
        return self.labels is not None and self.labels.notes_calls

    def label(
        self,
        *,
        step: int | Sequence[int] | None = None,
        microbatch: int | None = None,
        **labels: Any,
    ) -> None:
        """See `contracts.host.HostClock.label`."""
        if self.labels is not None:
            self.labels.send(step, microbatch, labels)

    def count_calls(self, *, called: bool = False) -> None:
        """Begin a step with each outermost forward call after the first, until `step` is called.

        So `for batch in data: model(batch); observation.step()` numbers steps as counting alone does,
        and the first `step()` takes over without a jump. called: the first call is under way already.
        """
        self.counting, self._begun = True, called

    def end_counting(self) -> None:
        """The last counted step has ended as well. Idempotent."""
        if self.counting and self._begun:
            self.step()
        self.counting = False

    @property
    def microbatch(self) -> int:
        """Index of the forward pass within the host step, 0..65534 (more stay at the last).

        Calls of the observed model are counted. A host that accumulates gradients in another
        rhythm sets it, and from then on sets it always; `step` starts at 0 again.
        """
        return self._microbatch

    @microbatch.setter
    def microbatch(self, value: int) -> None:
        with self.lock:
            self._host_counts_microbatches = True
            self._microbatch = max(0, min(int(value), _MAX_MICROBATCH))
            self._moment = _Moment()
            self._retag()

    @property
    def paused(self) -> bool:
        """The host is aside from its own work (a validation): its calls of the model are not captured, are
        counted in hook_skipped, and count neither as steps nor as microbatches. Gradients of calls that
        were made before still come."""
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value
        self.cells[CLOCK_PAUSED] = value

    @property
    def counts(self) -> bool:
        """Whether calls of the model are the host's own work."""
        return not (self._paused or self._aside is not None)

    @property
    def constant(self) -> bool:
        """The host is at its constant evaluation batch: packets say so (`CONSTANT_MICROBATCH`), and
        calls count neither as steps nor as microbatches."""
        return self._aside is not None

    @constant.setter
    def constant(self, value: bool) -> None:
        with self.lock:
            if value == self.constant:
                return
            if self._aside is None:
                self._aside = self._microbatch, self._moment
                self._microbatch, self._moment = CONSTANT_MICROBATCH, _Moment()
            else:
                self._microbatch, self._moment = self._aside
                self._aside = None
            self._retag()

    @property
    def token_position(self) -> int:
        """Position in its sequence of the first token that the next forward pass sees; -1: unknown.

        A host that decodes with a key-value cache sets it before each forward pass.
        """
        return self._token_position

    @token_position.setter
    def token_position(self, value: int) -> None:
        with self.lock:
            self._token_position = max(NO_TOKEN_POSITION, min(int(value), _MAX_POSITION))
            self._retag()

    def forward_started(self) -> None:
        """The observed model is called: the next microbatch, unless the host counts them itself."""
        with self.lock:
            self._count_forward()

    def begin_call(self, *, counts_forwards: bool = True) -> CallFrame:
        """This thread begins an outermost forward call: a step if calls are counted as such, then a
        microbatch, then the tags that the call keeps."""
        stepped = False
        with self.lock:
            if self.counting and self.counts:
                if self._begun:
                    self._advance(self.host_step + 1)
                    stepped = True
                self._begun = True
            if counts_forwards:
                self._count_forward()
            moment = self._moment
            first = moment.calls << _CALLS_APART
            moment.calls = min(moment.calls + 1, 2**14)
            frame = CallFrame(moment, self._now, self._now_serial, first)
            self._threads.frame = frame
            self._open += 1
            if self._open == 1:
                self._show(self._now, self._now_serial, get_ident())
            else:  # several threads are in calls: none of them owns what is shown
                self._show(self.tags, self.serial, _NOBODY)
        if stepped:
            self._stepped()
        return frame

    def end_call(self, frame: CallFrame) -> None:
        """The forward call of this thread is over."""
        with self.lock:
            if getattr(self._threads, "frame", None) is not frame:
                return
            self._threads.frame = None
            if self.moments is not None and self.counts:
                self.moments.ended(Moment(frame.tags, frame.held))
            frame.held = None
            self._open -= 1
            if self._open:
                return
            # What was counted in calls side by side goes on nowhere: the next tags are new ones.
            owner = self._home if self.owner != _NOBODY else _NOBODY
            self._show(self._now, self._now_serial, owner)

    @property
    def call(self) -> CallFrame | None:
        """The forward call that this thread is in."""
        frame: CallFrame | None = getattr(self._threads, "frame", None)
        return frame

    def here(self) -> CallFrame | None:
        """None in the thread that owns `tags` and `serial`; in any other its own."""
        if self.owner == get_ident():
            return None
        frame: CallFrame | None = getattr(self._threads, "frame", None)
        return frame if frame is not None else self._without_call()

    @property
    def next_call(self) -> tuple[int, int]:
        """(serial, first call index) of an outermost forward call that begins next, if not later ones."""
        return self._now_serial, self._moment.calls << _CALLS_APART

    def serial_of(self, frame: CallFrame) -> int:
        """Of the frame's tags."""
        return frame.serial if frame.serial >= 0 else self._now_serial

    @property
    def own_tags(self) -> Tags:
        """The tags of this thread."""
        tags = self.tags
        here = self.here()
        return tags if here is None else here.tags

    def number_text(self, frame: CallFrame) -> int:
        """A number for one more text of the frame's moment; NO_TEXT when they are used up."""
        with self.lock:
            moment = frame.moment
            if moment.texts >= MAX_TEXT:
                return NO_TEXT
            moment.texts += 1
            return moment.texts

    def forked(self) -> None:
        """In a child: whoever held the lock is not there."""
        self.lock = threading.RLock()

    def call_at(self, step: int, alarm: Callable[[int], int | None]) -> None:
        """Call ``alarm(host_step)`` once the host has made `step` steps; it returns the step at
        which it wants to be called again, or None."""
        self._alarm_step, self._alarm = step, alarm

    def _advance(self, host_step: int) -> None:
        self.host_step = host_step
        self._forwards = self._microbatch = 0
        self._moment = _Moment()
        self._retag()

    def _count_forward(self) -> None:
        if self._host_counts_microbatches or not self.counts:
            return
        self._forwards += 1
        microbatch = min(self._forwards - 1, _MAX_MICROBATCH)
        if microbatch != self._microbatch:
            self._microbatch = microbatch
            self._moment = _Moment()
            self._retag()

    def _stepped(self) -> None:
        try:
            self._slot.tick(self._steps_cell, self.host_step)
        except ValueError:
            return  # the run has ended, and its page with it
        self._after_step()

    def _after_step(self) -> None:
        """What is to be done at some steps, or where somebody asked for it."""
        if self.host_step >= self._alarm_step:
            self._ring()
        if self.each_step is not None:
            try:
                self.each_step()
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
                self.each_step = None
                log.debug("what was to happen at each step failed: %s", error)
        if self.rounds is not None:
            try:
                self.rounds(self.host_step)
            except Exception as error:  # noqa: BLE001 - as above
                self.rounds = None
                log.warning("parameters are no longer captured, after an error: %s", error)

    def _retag(self) -> None:
        self._serials = self._now_serial = serial = self._serials + 1
        now = self.host_step, self.weights_version, self._microbatch, self._token_position
        self._now = now
        if not self._open:  # as `_show`; each step of the host pays for a call of it
            self.owner, self.tags, self.serial = self._home, now, serial
            _SHOWN.pack_into(self._buffer, 0, serial, *now, self._home, 0)
            return
        frame = getattr(self._threads, "frame", None)
        if frame is not None:  # its own call has changed them
            frame.tags, frame.serial, frame.moment = self._now, self._now_serial, self._moment
            frame.indices.clear()
            if self.owner == get_ident():
                self._show(self._now, self._now_serial, self.owner)

    def _show(self, tags: Tags, serial: int, owner: int) -> None:
        if serial == self.serial:
            if owner != self.owner:
                self.owner = self.cells[CLOCK_OWNER] = owner
            return
        self.owner = owner  # first: a reader takes the tags, then asks whose they are
        self.tags, self.serial = tags, serial
        _SHOWN.pack_into(self._buffer, 0, serial, *tags, owner, 0)

    def _without_call(self) -> CallFrame:
        """Captures outside of any forward call in a thread that does not own the clock's tags."""
        threads = self._threads
        record: CallFrame | None = getattr(threads, "outside", None)
        if record is None:
            with self.lock:
                first = _OUTSIDE | (self._outside & 0x7FFF) << _CALLS_APART
                self._outside += 1
            threads.outside = record = CallFrame(self._moment, self._now, -1, first)
        record.tags = self._now  # its calls are counted on and on: no two have one key
        return record

    def _ring(self) -> None:
        alarm, self._alarm_step = self._alarm, sys.maxsize
        try:
            again = alarm(self.host_step) if alarm is not None else None
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            log.debug("an alarm of the step clock failed: %s", error)
            return
        self._alarm_step = sys.maxsize if again is None else again


IN_PYTHON = {
    "step": StepClock.step,
    "step_to": StepClock.step_to,
    "weights_updated": StepClock.weights_updated,
}
"""What the compiled methods must do."""
if clock_methods is not None:
    StepClock.step, StepClock.step_to, StepClock.weights_updated = clock_methods(  # type: ignore[method-assign]
        StepClock, _Moment, Moments, SlotField.HEARTBEAT_NS, SlotField.AHEAD_NS
    )
