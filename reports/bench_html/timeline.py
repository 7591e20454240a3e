"""All rounds of the run in the order in which they ran, a lane per case: the interleaving, and where
the noise was. Marks differ in height and outline, not only in colour."""

from __future__ import annotations

from asys_bench.harness.results.result import Case, Result, Round
from asys_bench.reports.bench_html.round_dots import State, state_of, title_of
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import some

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
