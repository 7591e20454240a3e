"""HookStream: the state of one hook point and its metrics. Writer: the bus's side of all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from asys_bench.capture.hooks import graph_op
from asys_bench.capture.notices import Notices
from asys_bench.capture.points.hookpoints import IN_ROUNDS, HookError, HookPoint
from asys_bench.capture.points.selection import describe, parse_path
from asys_bench.capture.sampling import Coin, FillController, RowBudget
from asys_bench.contracts.bus import BaseDataBus
from asys_bench.contracts.capture_port import (
    OFF_DIRECT,
    OFF_NOTHING,
    STATE_CALM,
    STATE_CALM_CHECKS,
    STATE_CELLS,
    STATE_COUNTDOWN,
    STATE_NEXT_RATE,
    STATE_OFF,
    STATE_RATE,
    PortCells,
)
from asys_bench.contracts.encodings.padding import PADDED
from asys_bench.contracts.encodings.parts import part_name
from asys_bench.contracts.packet import PacketMeta
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.contracts.stats import Slot

_CONTENTION_S = 0.05

FAILURES_IN_A_ROW = 16
"""A hook whose calls fail this often, with no capture between them, switches itself off."""


class Writer:
    """The producer of shard 0, and the lock of everybody who writes to it or counts for a hook.

    All hooks of a host process share them: a host may call its model from several threads (or
    DataParallel may), and a shard has one writer.

    lock: held for as long as a packet is copied.
    patience_s: how long a thread waits for it before it drops its packet. It is never reached but by
        a signal handler that runs the model in the middle of one of our captures.
    block_timeout_s: longest wait for room (`on_full: block`); 0.0 never waits.
    adapts: the sampling rate follows the bus (`on_full: sample`).
    """

    def __init__(self, bus: BaseDataBus, on_full: str, block_timeout_s: float) -> None:
        self.bus = bus
        self.producer = bus.producer(0)
        self.lock = threading.Lock()
        self.block_timeout_s = block_timeout_s if on_full == "block" else 0.0
        self.adapts = on_full == "sample"
        self.patience_s = _CONTENTION_S + self.block_timeout_s


def encoding_of(point: HookPoint, kernel: Preprocessor) -> str:
    """What the packets of a hook point are encoded as.

    Raises:
        HookError: rows are chosen of what is sent row by row.
    """
    if not kernel.samples:
        return (
            kernel.encoding
            if point.part is None
            else part_name(kernel.encoding, point.part.columns)
        )
    if point.kind in IN_ROUNDS:
        raise HookError(
            f"hook {point.name}: every row of a parameter is sent in its turn, so that none is left to "
            "choose: take token_sample out of `preprocess`"
        )
    return kernel.encoding


class HookStream:
    """One stream of packets.

    number: names the stream in graphs of torch.compile.
    is_of_text: its packets may say which of their rows are padding (`padded_id`).
    coin: decides which calls are kept; one object for all streams that share it.
    off: captures nothing any more: not attached, failed, or in a forked child.
    shape, dtype: of the first tensor that came; None before it.
    on_first: told of that tensor once, in the host's hook.
    needs_no_gradient: a call's tensor had no gradient to wait for.
    rows: what a row of its tensors is; None: what the last dimension holds.
    part: what this rank holds of a parameter, where packets say so.
    state, floats: what its next call depends on (`contracts.capture_port.STATE_*`), as integers and floats.

    Every call of the hook ends in exactly one of these counters, once it is over::

        hook_calls = hook_captured + hook_sampled_out + hook_dropped + hook_skipped

    hook_skipped: paused, wrong phase, no tensor with bytes where `select` points, no gradient to come,
    or a call that failed. hook_recomputed counts forward calls of activation checkpointing, which are no
    calls of the model's and not in hook_calls. hook_failed: the hook has switched itself off.
    """

    def __init__(
        self,
        point: HookPoint,
        writer: Writer,
        slot: Slot,
        kernel: Preprocessor,
        coin: Coin,
        notices: Notices | None = None,
        *,
        is_of_text: bool = False,
    ) -> None:
        self.point, self.kind = point, int(point.kind)
        self.kernel = kernel
        self.name = point.name
        self.number = graph_op.reserve_number()
        self.hook_id = writer.bus.intern(point.name)
        self.part = None if kernel.samples else point.part
        self.encoding_id = self.padded_id = writer.bus.intern(encoding_of(point, kernel))
        if is_of_text:
            self.padded_id = writer.bus.intern(f"{PADDED}+{kernel.encoding}")
        sampling = point.config.sampling
        self.coin = coin
        self.fill = FillController(sampling)
        budget = sampling.max_rows_per_s
        self.budget = RowBudget(budget) if budget is not None else None
        self.phase = {"any": None, "train": True, "eval": False}[point.config.phase]
        self.path = parse_path(point.config.select)
        state = bytearray(8 * STATE_CELLS)
        self.state = memoryview(state).cast("q")
        self.floats = memoryview(state).cast("d")
        self.rows = point.rows
        self._waits_for_rows = self.rows is not None and not self.rows.always_last
        self.off = True
        hook = point.name
        self.cells = slot.cells
        self.calls = slot.counter("hook_calls", hook=hook)
        self.captured = slot.counter("hook_captured", hook=hook)
        self.sampled_out = slot.counter("hook_sampled_out", hook=hook)
        self.dropped = slot.counter("hook_dropped", hook=hook)
        self.skipped = slot.counter("hook_skipped", hook=hook)
        self.recomputed = slot.counter("hook_recomputed", hook=hook)
        self.failures = slot.counter("hook_failed", hook=hook)
        self.bytes = slot.counter("hook_bytes", hook=hook)
        self._rate = slot.gauge("hook_sampling_rate", hook=hook)
        self.latency = slot.histogram("hook_latency_ns", hook=hook)
        self.set_rate(self.fill.rate)
        self._explained: set[str] = set()
        self._notices = notices or Notices()
        self.shape: tuple[int, ...] | None = None
        self.dtype: torch.dtype | None = None
        self.on_first: Callable[[HookStream], None] | None = None
        self.needs_no_gradient = False
        self._failed_in_a_row = self._captured_before = 0

    @property
    def meta(self) -> PacketMeta:
        """What all packets of the stream have in common."""
        return PacketMeta(self.hook_id, self.kind, 0, (), encoding_id=self.encoding_id)

    @property
    def port_cells(self) -> PortCells:
        return PortCells(
            self.cells,
            calls=self.calls.cell,
            captured=self.captured.cell,
            dropped=self.dropped.cell,
            nbytes=self.bytes.cell,
            latency=self.latency.cell,
        )

    @property
    def off(self) -> bool:
        return self.state[STATE_OFF] == OFF_NOTHING

    @off.setter
    def off(self, value: bool) -> None:
        self.state[STATE_OFF] = OFF_NOTHING if value else OFF_DIRECT if self._waits_for_rows else 0

    def check_rows(self, tensor: torch.Tensor) -> None:
        """Of a tensor as it is captured: warn where they are ambiguous, and let the compiled path take
        tensors whose rows are last. The writer's lock is held."""
        assert self.rows is not None
        if tensor.is_nested:  # it has no shape; why it is skipped is explained elsewhere
            return
        shape = tuple(tensor.shape)
        why = self.rows.warning(shape)
        if why is not None:
            self._notices.say(f"hook {self.name}: {why}")
        if self._waits_for_rows and self.rows.settled(len(shape)):
            self._waits_for_rows = False
            self.off = self.off

    def set_rate(self, rate: float) -> None:
        """The sampling rate of the calls to come; from which on is said in `state`."""
        self.floats[STATE_NEXT_RATE] = rate
        self._rate.set(rate)

    @property
    def rate(self) -> float:
        """The sampling rate of the call that was made last."""
        return float(self.floats[STATE_RATE])

    def rate_in_force(self, rate: float) -> None:
        """The sampling rate of the call that is made."""
        self.floats[STATE_RATE] = rate

    def set_calm(self, fill: float, checks: int) -> None:
        """Let the compiled path check the bus by itself (`capture_port.STATE_CALM`)."""
        self.floats[STATE_CALM] = fill
        self.state[STATE_CALM_CHECKS] = checks

    def raise_rate(self, raised: bool) -> None:
        """Sample at the highest rate that bus and row budget allow, or as configured again. It comes into
        force as any other rate: with a call whose coin was not tossed. Any thread."""
        self.fill.raise_ceiling(raised)
        self.set_calm(-1.0, 0)  # the next call takes the general path, which asks the controller
        self.state[STATE_COUNTDOWN] = 0

    def stumble(self, error: Exception) -> None:
        """A call has failed: say so once per kind of error, and switch off if all do. Never raises."""
        try:
            captured = self.captured.value
            if captured != self._captured_before:
                self._captured_before, self._failed_in_a_row = captured, 0
            self._failed_in_a_row += 1
            if self._failed_in_a_row < FAILURES_IN_A_ROW:
                kind = type(error).__name__
                self.explain(f"a call failed with {kind}: {error}", kind)
                return
        except Exception:  # noqa: BLE001 - a closed stats page or a broken logging handler
            pass
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """Switch off, count and log once; the host goes on. Never raises."""
        self.off = True
        try:
            self.failures.add()
            self._notices.say(
                f"hook {self.name} switched itself off after {type(error).__name__}: {error} (the "
                "host goes on unobserved there)"
            )
        except Exception:  # noqa: BLE001 - a closed stats page or a broken logging handler, no more
            return

    def say(self, what: str) -> None:
        """A line in the log about this hook."""
        self._notices.say(f"hook {self.name}: {what}")

    def nothing_at(self, value: Any) -> None:
        """Say, once, that `select` found no tensor in `value`."""
        wanted = self.point.config.select
        what = "a tensor" if wanted is None else f"select {wanted!r}"
        self.explain(f"{what} is not in {describe(value)}")

    def explain(self, why: str, reason: str | None = None) -> None:
        """Say, once per reason (`why` itself without one), why calls are skipped."""
        reason = reason or why
        if reason not in self._explained and len(self._explained) < 8:
            self._explained.add(reason)
            self._notices.say(
                f"hook {self.name}: {why}; such calls are counted in hook_skipped and not captured"
            )

    def first(self, tensor: torch.Tensor) -> None:
        """The first tensor of the phase that is asked for has come."""
        try:
            self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        except (
            RuntimeError
        ):  # a nested tensor has no shape; why it is skipped is explained elsewhere
            self.shape = ()
            return
        if self.on_first is not None:
            self.on_first(self)

    def too_large(self) -> None:
        """Say, once, that the bus can never take what the last call made."""
        if "size" in self._explained:
            return
        self._explained.add("size")
        size = ""
        if self.shape is not None and self.dtype is not None:
            mib = self.kernel.payload_bytes(self.shape, self.dtype) / (1 << 20)
            size = f" ({list(self.shape)}, {mib:.3g} MiB)"
        self._notices.say(
            f"hook {self.name}: a call's tensor{size} is larger than the bus can ever take: such calls "
            "are refused and counted as too_large. Raise bus.capacity_mib, or take fewer rows "
            "(preprocess: token_sample)"
        )
