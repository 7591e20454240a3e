"""The rounds behind one target, in run order, with noise events marked and the limit drawn."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from asys_bench.harness.results.result import Case, Result, Round, SampleSummary
from asys_bench.harness.results.result_run import Op, RoundStatus, TargetKind
from asys_bench.reports.bench_findings.finding import Finding
from asys_bench.reports.bench_html.target_rows import mark, verdict_class
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import exact, number, some, with_unit
from asys_bench.reports.page.scale import LEFT, RIGHT, TOP, Frame, Scale, figure, text, value_scale

FRAME = Frame(bottom=140.0, height=178.0)
LANE = FRAME.bottom + 9.0
"""Where noise events stand, below the plot."""


class State(StrEnum):
    OK = "counted"
    NOISY = "noisy, but counted"
    REPLACED = "replaced on noise evidence"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Dot:
    """A round's place in the run, and its value in the target's unit when it has one."""

    order: int
    value: float | None
    state: State
    title: str


def state_of(found: Round) -> State:
    if found.replaced:
        return State.REPLACED
    if found.status is not RoundStatus.OK:
        return State.BROKEN
    return State.NOISY if found.noise.noisy else State.OK


def title_of(found: Round) -> str:
    """`round 4, position 14 in the run: replaced on noise evidence: spin gap 4100 us`."""
    words = [f"round {found.index}, position {found.order} in the run", str(state_of(found))]
    words += [found.error] if found.error else []
    return ": ".join([*words, ", ".join(found.noise.evidence)]).removesuffix(": ")


def dots_of(finding: Finding) -> list[Dot]:
    """One per round. A ratio has a value only for the rounds that count."""
    target, rounds = finding.target, sorted(finding.case.rounds, key=lambda r: r.order)
    ratio = target.kind in (TargetKind.RATIO, TargetKind.BASELINE)
    counted = [r for r in rounds if state_of(r) in (State.OK, State.NOISY)]
    known = len(counted) == len(target.points)
    points = {r.order: p for r, p in zip(counted, target.points, strict=known)} if known else {}
    if not known and target.points and (ratio or not rounds):
        return [Dot(i, p, State.OK, f"round {i}") for i, p in enumerate(target.points)]
    dots = []
    for found in rounds:
        value = points.get(found.order)
        if value is None and not ratio:
            value = _value(found.values.get(target.metric), target.stat)
        dots.append(Dot(found.order, value, state_of(found), title_of(found)))
    return dots


def _value(summary: SampleSummary | None, stat: str) -> float | None:
    if summary is None:
        return None
    name = {"p50": "median", "p99.9": "p999"}.get(stat, stat)
    if name not in ("median", "mean", "min", "p90", "p99", "p999", "count"):
        return None
    value = getattr(summary, name)
    return None if value is None else float(value)


def round_dots(finding: Finding) -> Markup | None:
    """The figure; None when no round has a value, or when all of them are what an `==` asks for."""
    target, dots = finding.target, dots_of(finding)
    values = [dot.value for dot in dots if dot.value is not None]
    if not values or (target.op is Op.EQUAL and set(values) == {target.bound}):
        return None
    ci = target.ci
    marks = (target.bound, ci.low if ci else None, ci.high if ci else None)
    ends = [end for end in marks if end is not None]
    ratio = target.kind in (TargetKind.RATIO, TargetKind.BASELINE)
    y = value_scale([*values, *ends, *([1.0] if ratio else [])], FRAME.bottom, TOP)
    orders = [dot.order for dot in dots]
    x = Scale(min(orders) - 0.5, max(orders) + 0.5, LEFT + 6, RIGHT - 6)
    parts = [*FRAME.rows(y), *_limit(finding, y), *_band(finding, y)]
    if ratio:
        parts += _reference(finding, y)
    parts += [_dot(dot, x.place(dot.order), y) for dot in dots]
    parts += _limit_label(finding, y)
    parts.append(text(f"{min(orders)}", LEFT + 6, FRAME.height - 4, "start", "tick"))
    parts.append(text(f"{max(orders)}", RIGHT - 6, FRAME.height - 4, "end", "tick"))
    middle = (LEFT + RIGHT) / 2
    parts.append(text("position in the run", middle, FRAME.height - 4, "middle", "tick"))
    label = f"{finding.case.id} {finding.what} of each round in run order, limit {finding.limit}"
    drawing = tag("div", FRAME.drawing(label, parts), class_=verdict_class(finding.verdict))
    below = tag("p", mark(finding.verdict, gated=finding.gated), " ", tag("code", target.expr))
    return figure(finding.case.id, target.unit, drawing, below, _events(dots))


def _limit(finding: Finding, y: Scale) -> list[Markup]:
    bound, op = finding.target.bound, finding.target.op
    if bound is None:
        return []
    at = y.place(bound)
    parts = []
    if op is not Op.AT_LEAST:
        parts += FRAME.forbidden(LEFT, RIGHT, TOP, at)
    if op is not Op.AT_MOST:
        parts += FRAME.forbidden(LEFT, RIGHT, at, FRAME.bottom)
    return [*parts, tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="limit")]


def _limit_label(finding: Finding, y: Scale) -> list[Markup]:
    """On the forbidden side, unless there is no room."""
    bound = finding.target.bound
    if bound is None:
        return []
    at = y.place(bound)
    above = at > TOP + 16 if finding.target.op is Op.AT_MOST else at > FRAME.bottom - 18
    label = f"limit {exact(bound)}"
    return [text(label, RIGHT - 6, at - 5 if above else at + 13, "end", "limit-text")]


def _band(finding: Finding, y: Scale) -> list[Markup]:
    """The interval and the estimate over all rounds."""
    target = finding.target
    if target.observed is None:
        return []
    at, parts = y.place(target.observed), []
    if target.ci is not None:
        top = TOP if target.ci.high is None else y.place(target.ci.high)
        bottom = FRAME.bottom if target.ci.low is None else y.place(target.ci.low)
        parts.append(
            tag("rect", x=LEFT, y=top, width=RIGHT - LEFT, height=max(1.0, bottom - top),
                class_="band")
        )  # fmt: skip
    return [*parts, tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="estimate")]


def _reference(finding: Finding, y: Scale) -> list[Markup]:
    at = y.place(1.0)
    name = "equal to " + finding.target.unit.removeprefix("x ").removeprefix("X ")
    return [
        tag("line", x1=LEFT, x2=RIGHT, y1=at, y2=at, class_="reference"),
        text(name, LEFT + 6, at - 5 if at > TOP + 16 else at + 13, "start", "tick strong"),
    ]


def _dot(dot: Dot, x: float, y: Scale) -> Markup:
    parts: list[Markup] = []
    if dot.value is not None:
        at = y.place(dot.value)
        hollow = dot.state in (State.REPLACED, State.BROKEN)
        said = f"{dot.title}: {number(dot.value)}"
        kind = "hollow" if hollow else "dot"
        parts.append(tag("circle", tag("title", said), cx=x, cy=at, r=3.4, class_=kind))
        if hollow:
            cross = f"M{x - 3:.1f} {at - 3:.1f}l6 6m0 -6l-6 6"
            parts.append(tag("path", d=cross, class_="cross"))
    if dot.state is not State.OK:
        parts.append(event(dot.state, x, LANE, dot.title))
    return tag("g", *parts)


def event(state: State, x: float, y: float, title: str | None = None) -> Markup:
    """A triangle for noise (hollow when the round was replaced), a cross for a broken round."""
    said = tag("title", title) if title else None
    if state is State.BROKEN:
        return tag("path", said, d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="event broken")
    kind = "event replaced" if state is State.REPLACED else "event noisy"
    return tag("path", said, d=f"M{x:.1f} {y - 5:.1f}l5 9h-10z", class_=kind)


def _events(dots: list[Dot]) -> Markup | None:
    """What the marks below the plot mean, for those that are there."""
    items = []
    for state in (State.NOISY, State.REPLACED, State.BROKEN):
        n = sum(dot.state is state for dot in dots)
        if n:
            swatch = tag("svg", event(state, 8, 8), viewBox="0 0 16 16", class_="swatch square")
            items.append(tag("li", swatch, tag("span", with_unit(f"{n}", str(state)))))
    return tag("ul", *items, class_="legend") if items else None


# All rounds of the run in the order in which they ran, a lane per case: the interleaving, and where
# the noise was. Marks differ in height and outline, not only in colour.

HEIGHT = 18.0
MARKS = {
    State.OK: ("lane-ok", 7.0),
    State.NOISY: ("lane-noisy", 13.0),
    State.REPLACED: ("lane-replaced", 15.0),
    State.BROKEN: ("lane-broken", 17.0),
}


def timeline(result: Result) -> Markup | None:
    """The lanes; None when nothing ran."""
    cases = [case for case in result.cases if case.rounds]
    if not cases:
        return None
    orders = [found.order for case in cases for found in case.rounds]
    first, last = min(orders), max(orders)
    lanes = [_lane(case, first, max(1, last - first)) for case in cases]
    states = {state_of(found) for case in cases for found in case.rounds}
    legend = [
        tag("li", _swatch(state), tag("span", str(state))) for state in State if state in states
    ]
    ends = tag(
        "p", tag("span", f"{first}"), tag("span", "position in the run"), tag("span", f"{last}"),
        class_="lane-axis",
    )  # fmt: skip
    return tag("div", *lanes, ends, tag("ul", *legend, class_="legend"), class_="lanes card")


def _lane(case: Case, first: int, span: int) -> Markup:
    width = 6.0 if span < 80 else 4.0 if span < 240 else 2.5
    marks = [_mark(found, first, span, width) for found in case.rounds]
    label = f"{case.id}: {some(len(case.rounds), 'round')} in run order"
    drawing = tag("svg", tag("title", label), *marks, class_="lane", height=HEIGHT, role="img")
    return tag("div", tag("code", name(case.id)), drawing, class_="lane-row")


def _mark(found: Round, first: int, span: int, width: float) -> Markup:
    """Placed by percent: the lane is as wide as the page, the marks are not stretched."""
    kind, height = MARKS[state_of(found)]
    at = 0.75 + 98.5 * (found.order - first) / span
    return tag(
        "rect", tag("title", title_of(found)), x=f"{at:.2f}%", y=(HEIGHT - height) / 2,
        width=width, height=height, rx=1, class_=kind, transform=f"translate({-width / 2:g})",
    )  # fmt: skip


def _swatch(state: State) -> Markup:
    kind, height = MARKS[state]
    box = tag("rect", x=5, y=(HEIGHT - height) / 2, width=6, height=height, rx=1, class_=kind)
    return tag("svg", box, viewBox="0 0 16 18", class_="swatch square", aria_hidden="true")
