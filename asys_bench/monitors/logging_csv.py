"""`LoggingCSVMonitor`: the run as files (CSV, JSON-lines log, TensorBoard) and on the terminal.

Files in the run's directory: `metrics.csv` (see `metrics_csv`), `monitor.log` (see `event_log`) and
`tensorboard/`. A monitor that was killed and restarted goes on with the same files and clock.
On a terminal it draws a live table; otherwise it prints a plain line now and then. A file that the
disk refuses (full, quota, I/O error) is left out until it takes bytes again; an output that fails
otherwise (closed terminal) is given up. Both are said once, and the other outputs go on.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal

from pydantic import Field
from rich.console import Console
from rich.live import Live

from asys_bench.contracts.monitor import (
    BaseMonitor,
    MonitorContext,
    MonitorOptions,
    MonitorPlugin,
)
from asys_bench.contracts.run_files import EVENTS_FILE, METRICS_FILE, TENSORBOARD_DIR
from asys_bench.contracts.stats import RunState
from asys_bench.monitors.changes import Change, ChangeDetector
from asys_bench.monitors.event_log import EventLog, PausedOutputs
from asys_bench.monitors.figures import RunFigures, figures_of
from asys_bench.monitors.live_view import LiveModel, live_view
from asys_bench.monitors.metrics_csv import MetricsCsv, last_times, rows_of
from asys_bench.monitors.rates import Window
from asys_bench.monitors.readable import plain_line
from asys_bench.monitors.snapshot import RunSnapshot, take_snapshot
from asys_bench.monitors.tensorboard_files import MISSING, TensorBoardFiles, TorchWriter
from asys_bench.system.files import reason_of

RATE_SPAN_S = 2.0
"""Rates on the screen are over this long: steady to look at, quick enough to show a stall."""
FILES = ("log", "csv", "tensorboard")
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class LoggingCSVOptions(MonitorOptions):
    """Options of the `logging_csv` monitor."""

    interval_s: float = Field(
        1.0,
        gt=0,
        le=3600,
        description="Seconds between rows in metrics.csv and TensorBoard points.",
    )
    csv: bool = Field(True, description="Write metrics.csv.")
    tensorboard: bool = Field(
        True, description="Write TensorBoard event files, if tensorboard is installed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the events written to monitor.log."
    )
    live: bool = Field(
        True, description="On a terminal, draw a live table; otherwise print plain lines."
    )
    refresh_hz: float = Field(2.0, gt=0, le=10, description="Frames per second of the live table.")
    plain_interval_s: float = Field(
        5.0,
        ge=0,
        description="Seconds between plain lines on standard error when nothing live is drawn; "
        "0: none.",
    )


class LoggingCSVMonitor(BaseMonitor):
    """See the module. `interval_s` is the shorter of the files' interval and a frame."""

    def __init__(self, options: LoggingCSVOptions) -> None:
        self._options = options
        self.interval_s = options.interval_s
        self._log: EventLog | None = None
        self._csv: MetricsCsv | None = None
        self._tensorboard: TensorBoardFiles | None = None
        self._live: Live | None = None
        self._started_ns = self._shift_ns = 0
        self._changes = ChangeDetector()
        self._window: Window[RunFigures] = Window(RATE_SPAN_S)
        self._recorded: tuple[RunSnapshot, RunFigures] | None = None
        self._plain: RunFigures | None = None
        self._paused = PausedOutputs()
        self._capacity: int | None = None
        self._last_s = (0.0, 0.0)
        """time_s and wall time of the last row of the attempts before."""
        self._ahead_s = 0.0
        """Added to the wall clock, where it is behind that of an attempt before."""

    def open(self, context: MonitorContext) -> None:
        """Open or take up the files in `context.run_dir`; start the live view on a terminal."""
        self._context = context
        self._shift_ns = context.page.clock_shift_ns
        self._capacity = _capacity(context.config)
        if context.attempt:
            self._last_s = last_times(context.run_dir / METRICS_FILE)
            behind_s = self._last_s[1] - self._wall_s(time.monotonic_ns())
            self._ahead_s = max(0.0, behind_s)
        self._guard("log", self._open_log)
        self._started_ns = self._started_ns or time.monotonic_ns()
        if self._options.csv:
            self._guard("csv", self._open_csv)
        if self._options.tensorboard:
            self._guard("tensorboard", self._open_tensorboard)
        if self._options.live and context.terminal:
            self._guard("live", self._open_live)
        if self._live is not None:
            self.interval_s = min(self._options.interval_s, 1 / self._options.refresh_hz)
        elif self._options.plain_interval_s:
            self.interval_s = min(self._options.interval_s, self._options.plain_interval_s)

    def _open_log(self) -> None:
        attempt = self._context.attempt
        path = self._context.run_dir / EVENTS_FILE
        log = EventLog(path, LEVELS[self._options.log_level], attempt)
        self._changes = ChangeDetector(resumed=log.resumed)
        now = time.monotonic_ns()
        shift_ns, started_ns = self._shift_ns, log.started_ns()
        if started_ns is not None:
            self._started_ns = started_ns - shift_ns
        else:
            self._started_ns = now - int(1e9 * self._passed_s(log, self._wall_s(now)))
        elapsed_s = (now - self._started_ns) / 1e9
        try:
            log.opened(
                elapsed_s,
                self._wall_s(now),
                self._started_ns + shift_ns,
                self._context.run_id,
            )
        except OSError:
            log.close()
            raise
        self._log = log

    def _passed_s(self, log: EventLog, wall_s: float) -> float:
        """Seconds since the first attempt began, by wall clocks that may disagree."""
        first_s = log.first_wall_s()
        if not self._context.attempt or first_s is None:
            return 0.0
        return max(self._last_s[0], wall_s - first_s)

    def _open_csv(self) -> None:
        self._csv = MetricsCsv(self._context.run_dir / METRICS_FILE, self._context.attempt)

    def _open_tensorboard(self) -> None:
        try:
            context = self._context
            # TensorBoard shows a step that the host makes again as this attempt makes it.
            purge_step = context.first_step if context.attempt else None
            writer = TorchWriter(context.run_dir / TENSORBOARD_DIR, purge_step)
        except ImportError:
            self._say(MISSING)
        else:
            self._tensorboard = TensorBoardFiles(writer)

    def _open_live(self) -> None:
        console = Console(file=sys.stdout, force_terminal=True)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def tick(self, state: RunState) -> None:
        """Read everything once; write what is due, draw a frame or print a line."""
        self._reopen()
        snapshot = take_snapshot(self._context.page, self._context.account)
        figures = figures_of(snapshot)
        seconds, before = self._window.add(snapshot.time_ns, figures)
        elapsed_s = (snapshot.time_ns - self._started_ns) / 1e9
        stopped = state is RunState.STOPPED
        if self._log is not None:
            self._guard("log", self._write_log, snapshot, figures, elapsed_s)
        last = self._recorded[0].time_ns if self._recorded else 0
        # Half a frame early is closer than half a frame late.
        due_ns = last + (self._options.interval_s - self.interval_s / 2) * 1e9
        if stopped or snapshot.time_ns >= due_ns:
            self._record(snapshot, figures, elapsed_s)
        if self._live is not None:
            model = LiveModel(
                self._context.run_id,
                self._context.step_unit,
                elapsed_s,
                figures,
                before,
                seconds,
                self._capacity,
            )
            self._guard("live", self._draw, model)
        else:
            self._print_line(figures, elapsed_s, stopped)

    def _write_log(self, snapshot: RunSnapshot, figures: RunFigures, elapsed_s: float) -> None:
        assert self._log is not None
        changes = self._changes.observe(snapshot, figures)
        self._log.write(elapsed_s, self._wall_s(snapshot.time_ns), changes)

    def _record(self, snapshot: RunSnapshot, figures: RunFigures, elapsed_s: float) -> None:
        earlier, earlier_figures = self._recorded or (None, None)
        wall_s = self._wall_s(snapshot.time_ns)
        self._recorded = (snapshot, figures)
        if (csv := self._csv) is not None:
            self._guard("csv", lambda: csv.write(elapsed_s, wall_s, rows_of(snapshot, earlier)))
        if (board := self._tensorboard) is not None:
            self._guard(
                "tensorboard", lambda: board.write(figures, earlier_figures, elapsed_s, wall_s)
            )

    def _draw(self, model: LiveModel) -> None:
        assert self._live is not None
        self._live.update(live_view(model, self._live.console.width), refresh=True)

    def _print_line(self, figures: RunFigures, elapsed_s: float, stopped: bool) -> None:
        if not self._options.plain_interval_s:
            return
        before = self._plain
        seconds = (figures.time_ns - before.time_ns) / 1e9 if before else 0.0
        if before and not stopped and seconds < self._options.plain_interval_s:
            return
        self._plain = figures
        unit = self._context.step_unit
        line = plain_line(figures, before or figures, seconds, elapsed_s, unit)
        with suppress(OSError, ValueError):  # nobody reads our output any more
            print(line, flush=True)

    def close(self) -> None:
        """Close the files; takes the live table off the screen. Idempotent."""
        live, self._live = self._live, None
        outputs = (self._csv, self._tensorboard, self._log)
        self._csv = self._tensorboard = self._log = None
        if live is not None:
            with suppress(OSError, ValueError):
                live.stop()
        for output in outputs:
            if output is not None:
                with suppress(OSError):
                    output.close()

    def _guard(self, output: str, action: Callable[..., None], *arguments: object) -> None:
        """Run `action`; if this output cannot be written, pause or give it up, and go on with others."""
        now = time.monotonic()
        if self._paused.skip(output, now):
            return
        try:
            action(*arguments)
            left_out = self._paused.returned(output)
            if left_out and output != "log":
                self._say(f"monitor output {output!r} goes on; {left_out} writes were left out")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and reason_of(error) and output in FILES:
                if output == "tensorboard":
                    self._tensorboard = None  # its writer does not survive; a new file is begun
                if self._paused.refused(output, now):
                    self._say(f"monitor output {output!r} pauses until the disk takes it: {error}")
                return
            setattr(self, f"_{output}", None)
            self._say(f"monitor output {output!r} is given up: {type(error).__name__}: {error}")

    def _reopen(self) -> None:
        """Try the files that could not be opened when the disk refused."""
        opens = {
            "log": self._open_log,
            "csv": self._open_csv,
            "tensorboard": self._open_tensorboard,
        }
        for output, open_ in opens.items():
            if output in self._paused and getattr(self, f"_{output}") is None:
                self._guard(output, open_)

    def _say(self, message: str) -> None:
        """Tell it once: in this process's log and, while there is one, in monitor.log."""
        logging.getLogger(__name__).warning("%s", message)
        if self._log is not None:
            now = time.monotonic_ns()
            change = Change("notice", logging.WARNING, {"message": message})
            with suppress(OSError, ValueError):
                self._log.write((now - self._started_ns) / 1e9, self._wall_s(now), [change])

    def _wall_s(self, monotonic_ns: int) -> float:
        offset_ns = self._shift_ns + self._context.page.wall_offset_ns
        return (monotonic_ns + offset_ns) / 1e9 + self._ahead_s


def _capacity(config: Mapping[str, object]) -> int | None:
    """`bus.capacity_packets` of the resolved configuration, if it is there."""
    bus = config.get("bus")
    found = bus.get("capacity_packets") if isinstance(bus, Mapping) else None
    return found if isinstance(found, int) and found > 0 else None


def build(options: MonitorOptions) -> LoggingCSVMonitor:
    """A monitor from its validated options."""
    assert isinstance(options, LoggingCSVOptions)
    return LoggingCSVMonitor(options)


plugin = MonitorPlugin(
    name="logging_csv",
    summary="live status, CSV, structured log and TensorBoard files of a run",
    options=LoggingCSVOptions,
    build=build,
)
