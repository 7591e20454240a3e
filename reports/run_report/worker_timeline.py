"""A row per process: when it started, consumed, was down and came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asys_bench.contracts.stats import WorkerState
from asys_bench.monitors.readable import duration_text
from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.run_report.curves import time_ticks
from asys_bench.reports.run_report.series import Metrics

HEIGHT = 14.0
_KIND = {
    WorkerState.STARTING: "starting",
    WorkerState.READY: "ready",
    WorkerState.DONE: "done",
    WorkerState.FAILED: "failed",
    WorkerState.QUARANTINED: "quarantined",
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """A process was in one state from `start_s` to `end_s`."""

    state: WorkerState
    start_s: float
    end_s: float


def stretches(metrics: Metrics, end_s: float) -> dict[str, list[Stretch]]:
    """Process -> its states in order, from the readings of metrics.csv."""
    found: dict[str, list[Stretch]] = {}
    for key in metrics.find("worker_state"):
        mine: list[Stretch] = []
        for t, value in metrics.points(key):
            try:
                state = WorkerState(int(value))
            except ValueError:
                continue
            if mine and mine[-1].state is state:
                continue
            if mine:
                mine[-1] = Stretch(mine[-1].state, mine[-1].start_s, t)
            mine.append(Stretch(state, t, end_s))
        mine = [one for one in mine if one.state is not WorkerState.EMPTY]
        if mine:
            found[key.slot] = mine
    return found


def worker_timeline(metrics: Metrics, end_s: float) -> Markup | None:
    """The card with all rows; None when nothing was recorded."""
    found = stretches(metrics, end_s)
    if not found:
        return None
    rows = [_lane(name, mine, end_s) for name, mine in found.items()]
    ticks = [
        tag("span", duration_text(t), style=f"left:{100 * t / max(end_s, 1e-3):.2f}%")
        for t in time_ticks(end_s, 6)
    ]
    states = dict.fromkeys(one.state for mine in found.values() for one in mine)
    legend = [
        tag("li", _swatch(_KIND[state]), tag("span", state.name.lower()))
        for state in states
        if state in _KIND
    ]
    axis = tag("p", *ticks, class_="clock", aria_hidden="true")
    return tag("div", *rows, axis, tag("ul", *legend, class_="legend"), class_="lanes card")


def _lane(name: str, mine: Sequence[Stretch], end_s: float) -> Markup:
    marks = []
    for one in mine:
        start = 100 * one.start_s / max(end_s, 1e-3)
        width = max(0.4, 100 * (one.end_s - one.start_s) / max(end_s, 1e-3))
        told = (
            f"{one.state.name.lower()} {duration_text(one.start_s)} to {duration_text(one.end_s)}"
        )
        marks.append(
            tag("rect", tag("title", told), x=f"{start:.2f}%", y=2, width=f"{width:.2f}%",
                height=HEIGHT - 4, class_=f"state {_KIND.get(one.state, 'starting')}")
        )  # fmt: skip
    states = ", ".join(one.state.name.lower() for one in mine)
    drawing = tag(
        "svg", tag("title", f"{name}: {states}"), *marks, class_="lane", height=HEIGHT, role="img"
    )
    return tag("div", tag("code", name), drawing, class_="lane-row")


def _swatch(kind: str) -> Markup:
    box = tag("rect", x=1, y=4, width=14, height=9, rx=1, class_=f"state {kind}")
    return tag("svg", box, viewBox="0 0 16 18", class_="swatch square", aria_hidden="true")
