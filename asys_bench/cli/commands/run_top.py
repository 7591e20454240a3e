"""`asys-run top`: a running run in the terminal, drawn anew every second, also over ssh; q leaves.

It attaches to the run's stats page and only reads: the run does not notice how many people watch.
With --cluster BOOK: every receiver of an address book, and every forwarder that has connected to one.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asys_bench.cli.commands import fail
from asys_bench.contracts.stats import WorkerState
from asys_bench.monitors.live_view import live_view, name_columns, table
from asys_bench.monitors.rates import Window
from asys_bench.monitors.readable import bytes_text, percent_text, tail_text
from asys_bench.monitors.snapshot import RunSnapshot
from asys_bench.rundir.attach import (
    AttachedRun,
    RunGoneError,
    add_run_argument,
    attach_run,
    find_run,
)
from asys_bench.rundir.live_reading import RunReader

if TYPE_CHECKING:  # `asys-run top` of one run waits for none of it
    from asys_bench.cluster.identities import ClusterCheck
    from asys_bench.cluster.status import Cluster

GONE = 2
CLUSTER_SPAN_S = 6.0
"""Receivers say what they count every two seconds."""
FIRST_S = 1.0
"""`--once` looks for this long, because a rate needs two readings."""
SLOW_SHARE = 0.05
KEYS_QUIT = b"qQ\x1b\x03"


EXAMPLES = (
    ("asys-run top", "the newest run under runs/"),
    ("asys-run top runs/<run> --once", "one frame, for a script or a log"),
    ("asys-run top --cluster BOOK", "the receivers of an address book"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN and how to draw it."""
    add_run_argument(parser)
    parser.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="default: 1")
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument("--svg", metavar="FILE", help="with --once: write the frame as a picture")
    parser.add_argument(
        "--cluster", metavar="BOOK", help="the receivers of this address book, a folder or a URI"
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0 when the run ended or q was pressed; 2 when there is no such run, or no such book."""
    if arguments.cluster is not None:
        return _cluster(arguments, console)
    try:
        run = attach_run(find_run(arguments.run))
    except RunGoneError as error:
        return fail("asys-run top", console, str(error), GONE)
    with run:
        _draw(TopView(run), arguments, console)
    return 0


def _cluster(arguments: argparse.Namespace, console: Console) -> int:
    from asys_bench.cluster.book import BookError

    if arguments.run is not None:
        refused = "name a run, or --cluster BOOK"
    else:
        try:
            _draw(ClusterView(arguments.cluster), arguments, console)
        except BookError as error:
            refused = str(error)
        else:
            return 0
    return fail("asys-run top", console, refused, GONE)


class View(Protocol):
    """What is drawn again and again. ended: it does not change any more."""

    ended: bool

    def frame(self, width: int) -> RenderableType: ...


def _draw(view: View, arguments: argparse.Namespace, console: Console) -> None:
    if arguments.once:
        view.frame(console.width)
        time.sleep(FIRST_S)
        _print_once(view, console, arguments.svg)
    else:
        _watch(view, arguments.interval)


class ClusterView:
    """A cluster's frames. A book that cannot be read for once leaves the last frame, and says so."""

    ended = False

    def __init__(self, place: str) -> None:
        """Raises BookError: it is no place for a book, or cannot be read."""
        self._place = place
        self._cluster = self._read()
        self._window: Window[ClusterCheck] = Window(CLUSTER_SPAN_S)

    def _read(self) -> Cluster:
        from asys_bench.cluster.status import read_cluster

        return read_cluster(self._place)

    def frame(self, width: int) -> RenderableType:
        from asys_bench.cluster.book import BookUnavailableError
        from asys_bench.cluster.view import ClusterFrame, cluster_view

        refused = None
        try:
            self._cluster = self._read()
        except BookUnavailableError as error:
            refused = Text(str(error), "yellow")
        check = self._cluster.check
        seconds, before = self._window.add(time.monotonic_ns(), check)
        shown = cluster_view(ClusterFrame(self._cluster, check, before, seconds), width)
        return shown if refused is None else Group(shown, Text(), refused)


class TopView:
    """One run's frames: the monitor's live view, what observing costs, and every process."""

    def __init__(self, run: AttachedRun) -> None:
        self._reader = RunReader(run)
        self.ended = False

    def frame(self, width: int) -> RenderableType:
        """Read everything once and draw it for `width` columns."""
        found = self._reader.read()
        self.ended = found.ended
        return Group(
            live_view(found.model, width),
            Text(),
            _cost(found.hook_share),
            Text(),
            _processes(found.snapshot, found.busy, found.memory),
        )


def _cost(share: float) -> Text:
    """What share of the host's time hooks took: its slowdown, as far as our own clock can see it."""
    text = Text.assemble(("cost   ", "bold"), "hooks take ")
    text.append(percent_text(share), "bold yellow" if share > SLOW_SHARE else "bold green")
    return text.append(" of the host's time", "")


def _processes(
    snapshot: RunSnapshot, busy: Mapping[str, float], memory: Mapping[str, int]
) -> RenderableType:
    names = [name for name, s in snapshot.slots.items() if s.state is not WorkerState.EMPTY]
    width = name_columns(names, 24)
    made: Table = table("process", width, ("pid", 8), ("CPU", 8), ("memory", 10))
    for name in names:
        made.add_row(
            tail_text(name, width),
            str(snapshot.slots[name].pid),
            percent_text(busy.get(name, float("nan"))),
            bytes_text(memory.get(name, float("nan"))),
        )
    return made


def _print_once(view: View, console: Console, svg: str | None) -> None:
    if svg is None:
        console.print(view.frame(console.width))
        return
    width = 120
    with open(os.devnull, "w") as nowhere:
        recorder = Console(record=True, width=width, file=nowhere, force_terminal=True)
        recorder.print(view.frame(width))
        Path(svg).write_text(recorder.export_svg(title="asys-run top"), encoding="utf-8")
    console.print(f"written: {svg}", markup=False)


def _watch(view: View, interval_s: float) -> None:
    """Draw until q, Ctrl-C or the end of the run; the last frame stays on the screen."""
    console = Console()
    last: RenderableType | None = None
    live = Live(console=console, auto_refresh=False, screen=console.is_terminal)
    with _keys() as keyboard, suppress(KeyboardInterrupt), live:
        while True:
            last = view.frame(console.width)
            live.update(Group(last, Text("\nq leaves", "dim")), refresh=True)
            if view.ended or _pressed(keyboard, interval_s):
                break
    if last is not None and console.is_terminal:
        console.print(last)


@contextmanager
def _keys() -> Iterator[int | None]:
    """Standard input, one key at a time and unseen; None when it is not a terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _pressed(keyboard: int | None, timeout_s: float) -> bool:
    """A key that leaves was pressed within `timeout_s`."""
    until = time.monotonic() + timeout_s
    while (left := until - time.monotonic()) > 0:
        if keyboard is None:
            time.sleep(left)
        elif select.select([keyboard], [], [], left)[0]:
            key = os.read(keyboard, 16)
            if not key or any(byte in KEYS_QUIT for byte in key[:1]):
                return True
    return False


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.1..60 seconds")
    return value
