"""The capture port: a backend's compiled shortcut from a hook to the bus.

A packet through a port is the packet that the general path would have sent; what a port does not know
it hands back untouched (`tests/unit/backends/test_cpp_spmc_capture.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch


class CapturePort(Protocol):
    """A backend's shortcut for the commonest hook call; `BusProducer.capture_port` makes it.

    It takes a plain contiguous CPU tensor of at most about a mebibyte as it is (encoding "identity"),
    pushes it without waiting, and keeps the hook's counters and latency histogram itself.
    """

    def __call__(
        self,
        tensor: torch.Tensor,
        host_step: int,
        weights_version: int,
        call_index: int,
        microbatch: int,
        token_position: int,
        sampling_rate: float,
        /,
    ) -> int:
        """PORT_ACCEPTED, PORT_REFUSED (counted on the bus and for the hook), or PORT_NOT_MINE:
        nothing was done or counted, the general path must take this call."""

    def direct(self, decision: Decision) -> DirectCapture:
        """Sampling decision and push in one call."""

    def close(self) -> None:
        """Let go of the stats page; from then on every call, also of what `direct` made, is
        PORT_NOT_MINE. Idempotent."""


DirectCapture = Callable[[Any], int]
"""(what the module returned) -> PORT_ACCEPTED: done with, be it that the packet is on the bus or that
the sampler left the call out · PORT_REFUSED: counted, the controller has yet to be told ·
PORT_NOT_MINE: not captured, not counted, the general path must take this call. Never raises."""

PORT_ACCEPTED, PORT_REFUSED, PORT_NOT_MINE = 0, 1, 2


class ForwardHook(Protocol):
    """What a class of forward hooks must have so that a backend can compile its calls."""

    direct: DirectCapture
    """Made by `CapturePort.direct`."""
    phase: bool | None
    """What `module.training` must be; None: anything."""

    def __call__(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        """The whole hook; what torch.compile traces, and what runs where nothing is compiled."""

    def otherwise(self, outcome: int, module: torch.nn.Module, output: Any) -> None:
        """`direct` has answered something else than PORT_ACCEPTED."""


HookT = TypeVar("HookT", bound=ForwardHook)


@dataclass(frozen=True, slots=True)
class PortCells:
    """Where a port counts: cells of the hook's slot of the stats page."""

    cells: memoryview
    """int64, writable."""
    calls: int
    captured: int
    dropped: int
    nbytes: int
    latency: int
    """First cell of a histogram (nanoseconds)."""


(
    STATE_OFF, STATE_SEEN, STATE_CALL_INDEX, STATE_COUNTDOWN, STATE_RATE,
    STATE_NEXT_RATE, STATE_NEXT_SERIAL, STATE_NEXT_INDEX,
    STATE_CALM, STATE_CALM_CHECKS, STATE_CELLS,
) = range(11)  # fmt: skip
"""Cells of `Decision.state`. OFF: OFF_NOTHING captures nothing, OFF_DIRECT leaves every call to the
general path, 0 is neither. SEEN: serial of the clock's tags at the last call, CALL_INDEX: calls of
the hook since those tags came. COUNTDOWN: calls up to and with the one that checks the bus. RATE:
the sampling rate, a float64.

NEXT_RATE becomes RATE with the hook's next call of a later serial than NEXT_SERIAL, or of that one and an
index of at least NEXT_INDEX: no hook has tossed that call's coin when NEXT_RATE was chosen. A rate depends
on how full the bus is, and so on the coins of calls that were made; were one of them the coin that it is
compared with, `1 / rate` weights would be biased.

CALM: the fill ratio of the bus (a float64) up to which a check would change nothing. Up to it the
shortcut may check by itself, CALM_CHECKS times at most until the general path does; below 0 never."""

OFF_NOTHING, OFF_DIRECT = 1, 2

CALLS_BETWEEN_CHECKS = 16
"""`STATE_COUNTDOWN` after a check of a calm bus."""

(
    CLOCK_SERIAL, CLOCK_STEP, CLOCK_VERSION, CLOCK_MICROBATCH, CLOCK_POSITION, CLOCK_OWNER,
    CLOCK_TOSSED, CLOCK_PAUSED, CLOCK_CELLS,
) = range(9)  # fmt: skip
"""Cells of `Decision.clock`. SERIAL: another number for every change of the tags behind it. OWNER:
`threading.get_ident()` of the thread that the tags are of; calls in another one are PORT_NOT_MINE.
TOSSED: one more than the highest call index with these tags that any hook has tossed the coin for.
PAUSED: not 0 while nothing is captured; every call is PORT_NOT_MINE."""

BUDGET_DUE_NS, BUDGET_OFFERED, BUDGET_DEBT, BUDGET_TOP, BUDGET_CELLS = range(5)
"""Cells of `Decision.budget`. DUE_NS: time (CLOCK_MONOTONIC) from which a call must make it up anew.
OFFERED: rows since it was. DEBT: rows sent beyond the budget. TOP: rows of the largest call lately."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What decides on a call of a hook in its phase; both paths keep it up to date."""

    state: memoryview
    """int64, writable, STATE_CELLS of them."""
    clock: memoryview
    """int64, writable, CLOCK_CELLS of them."""
    sampled_out: int
    """Cell of the stats page that counts calls left out by the sampler."""
    skipped: int
    """And the one for calls out of the hook's phase."""
    coin_key: int
    """Of `contracts.coin.toss`, which is tossed only while the rate is below 1."""
    locked: Callable[[], bool]
    """Whether the general path is at work in another thread."""
    graph_task: Callable[[], int]
    """The backward pass that this thread runs in, or -1."""
    budget: memoryview[float] | None = None
    """float64, writable, BUDGET_CELLS of them; None: no budget of rows."""
