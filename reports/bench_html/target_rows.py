"""The targets, worst first: verdict, limit, interval bar and numbers of each."""

from __future__ import annotations

import math

from asys_bench.harness.results.result import Result
from asys_bench.harness.results.result_run import Op, Verdict
from asys_bench.reports.bench_findings.finding import Finding, findings, unmeasured
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.quantity import exact, number, with_unit
from asys_bench.reports.page.scale import Scale

# The bar of one target: its interval against its limit, the forbidden side hatched.

WIDTH, HEIGHT, EDGE = 360.0, 58.0, 10.0
TOP, BOTTOM, MIDDLE = 5.0, 37.0, 21.0
SPANS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How far the axis may reach, as a factor of the limit; values beyond are drawn as an arrow."""


def interval_bar(finding: Finding) -> Markup:
    """An SVG that reads `value, interval, limit` aloud."""
    target = finding.target
    label = (
        f"{target.expr}: {finding.verdict}, {finding.value}, interval {finding.interval}, "
        f"limit {finding.limit}"
    )
    if target.bound is None:
        parts: list[Markup] = [_note("no limit is known")]
    elif target.observed is None:
        scale = _scale(target.bound, [])
        parts = [*_ground(finding, scale, target.bound), _note("no data")]
    else:
        ci = target.ci
        ends = [target.observed, *(x for x in ((ci.low, ci.high) if ci else ()) if x is not None)]
        scale = _scale(target.bound, ends)
        parts = [*_ground(finding, scale, target.bound), *_interval(finding, scale)]
    view = f"0 0 {WIDTH:g} {HEIGHT:g}"
    return tag("svg", tag("title", label), *parts, viewBox=view, class_="bar", role="img")


def _scale(bound: float, values: list[float]) -> Scale:
    """The limit stands in the middle; logarithmic about it where all is positive."""
    start, end = EDGE, WIDTH - EDGE
    if bound > 0 and all(value > 0 for value in values):
        widest = max((abs(math.log(value / bound)) for value in values), default=0.0) * 1.12
        span = next((s for s in SPANS if math.log(s) >= widest), SPANS[-1])
        return Scale(bound / span, bound * span, start, end, log=True)
    reach = max((abs(value - bound) for value in values), default=0.0) * 1.25 or 1.0
    if bound >= 0 and all(value >= bound for value in values):
        # A count, nearly always: there is nothing to see below its limit.
        return Scale(bound - 0.15 * reach, bound + reach, start, end)
    return Scale(bound - reach, bound + reach, start, end)


def _ground(finding: Finding, scale: Scale, bound: float) -> list[Markup]:
    """Both sides of the limit, the limit, and the ends of the axis."""
    op, at = finding.target.op, scale.place(bound)
    sides = [(scale.start, at, op is Op.AT_LEAST), (at, scale.end, op is Op.AT_MOST)]
    if op is Op.EQUAL:
        sides = [(scale.start, at, True), (at, scale.end, True)]
    parts = []
    for left, right, outside in sides:
        box = {"x": left, "y": TOP, "width": right - left, "height": BOTTOM - TOP}
        parts.append(tag("rect", class_="outside" if outside else "inside", **box))
        if outside:
            parts.append(tag("rect", fill="url(#hatch)", **box))
    parts.append(tag("line", x1=at, x2=at, y1=TOP - 4, y2=BOTTOM + 4, class_="limit"))
    limit = with_unit(f"{op} {exact(bound)}", finding.target.unit)
    parts.append(_text(limit, at, "middle", "tick strong"))
    if at - scale.start > 0.3 * (scale.end - scale.start):
        parts.append(_text(number(scale.low), scale.start, "start", "tick"))
    parts.append(_text(number(scale.high), scale.end, "end", "tick"))
    return parts


def _interval(finding: Finding, scale: Scale) -> list[Markup]:
    target = finding.target
    assert target.observed is not None
    parts: list[Markup] = []
    if target.ci is not None:
        low, high = target.ci.low, target.ci.high
        left = scale.start if low is None else scale.place(low)
        right = scale.end if high is None else scale.place(high)
        parts.append(
            tag("rect", x=left, y=MIDDLE - 5, width=max(2.0, right - left), height=10, rx=2,
                class_="ci")
        )  # fmt: skip
        for bounded, x in ((low is not None, left), (high is not None, right)):
            if bounded:
                parts.append(tag("line", x1=x, x2=x, y1=MIDDLE - 8, y2=MIDDLE + 8, class_="cap"))
            else:
                parts.append(_text("?", x, "middle", "tick strong", MIDDLE + 4))
    x = scale.place(target.observed)
    if scale.holds(target.observed):
        return [*parts, tag("circle", cx=x, cy=MIDDLE, r=5, class_="dot")]
    tip = 7 if target.observed > scale.high else -7
    arrow = f"M{x - tip:.1f} {MIDDLE - 7:g}L{x + tip:.1f} {MIDDLE:g}L{x - tip:.1f} {MIDDLE + 7:g}z"
    return [*parts, tag("path", d=arrow, class_="dot")]


def _text(text: str, x: float, anchor: str, kind: str, y: float = HEIGHT - 5) -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=kind)


def _note(text: str) -> Markup:
    return _text(text, EDGE + 8, "start", "nodata", MIDDLE + 5)


# A verdict by shape, word and colour: colour alone must never say it.

_SHAPES = {
    # Disc with a check, octagon with a cross, half-filled diamond, barred ring.
    Verdict.PASS: (
        tag("circle", cx=8, cy=8, r=7.5, class_="fill"),
        tag("path", d="M4.5 8.4l2.5 2.5 4.6-5.2", class_="ink"),
    ),
    Verdict.FAIL: (
        tag("path", d="M5 .6h6L15.4 5v6L11 15.4H5L.6 11V5z", class_="fill"),
        tag("path", d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4", class_="ink"),
    ),
    Verdict.INCONCLUSIVE: (
        tag("path", d="M8 .8L15.2 8 8 15.2.8 8z", class_="ring thin"),
        tag("path", d="M8 .8v14.4L.8 8z", class_="fill"),
    ),
    Verdict.INVALID: (
        tag("circle", cx=8, cy=8, r=6.5, class_="ring"),
        tag("path", d="M3.6 12.4l8.8-8.8", class_="ring"),
    ),
}
_LIKE = {Verdict.REFUSED: Verdict.INVALID, Verdict.INTERRUPTED: Verdict.INCONCLUSIVE}


def verdict_class(verdict: Verdict) -> str:
    """The CSS class that sets `--v`, the verdict's colour."""
    return f"v-{_LIKE.get(verdict, verdict).lower()}"


def icon(verdict: Verdict) -> Markup:
    shapes = _SHAPES[_LIKE.get(verdict, verdict)]
    return tag("svg", *shapes, class_="icon", viewBox="-.5 -.5 17 17", aria_hidden="true")


def mark(verdict: Verdict, *, gated: bool = True) -> Markup:
    """The icon and the word."""
    judged = None if gated else tag("span", "not judged", class_="unjudged")
    kind = f"mark {verdict_class(verdict)}" + ("" if gated else " faint")
    return tag("span", icon(verdict), tag("b", str(verdict)), judged, class_=kind)


def target_rows(result: Result) -> Markup:
    found = findings(result)
    if not found:
        body = tag("p", "No target was judged. No data is never a pass.", class_="card")
    else:
        body = tag("ol", *(_row(finding) for finding in found), class_="targets")
    how = (
        "Each bar is one target: the dot is the estimate, the box its confidence interval, the "
        "upright line the limit, and the hatched side is forbidden. A target passes when the whole "
        "box lies on the clear side."
    )
    return tag(
        "section", tag("h2", "Targets, worst first"), tag("p", how, class_="how"), body,
        _unmeasured(result), id="targets",
    )  # fmt: skip


def _row(finding: Finding) -> Markup:
    target = finding.target
    interval = finding.interval
    numbers = [
        ("value", finding.value, "strong"),
        (f"interval {finding.confidence}".strip(), interval, ""),
        ("margin", finding.margin, ""),
    ]
    if finding.verdict is Verdict.INCONCLUSIVE:
        numbers.append(("rounds needed", finding.rounds_needed, "strong"))
    cells = [tag("div", tag("dt", k), tag("dd", v, class_=c or None)) for k, v, c in numbers]
    reason = target.reason
    if finding.needs:
        reason = f"{reason}; needs {finding.needs}"
    how = f"{target.method}; look {target.look} of {target.looks}; {target.where}"
    return tag(
        "li",
        tag(
            "div",
            mark(finding.verdict, gated=finding.gated),
            tag("h3", name(finding.case.id)),
            tag("code", target.expr),
            class_="who",
        ),
        interval_bar(finding),
        tag("dl", *cells, class_="numbers"),
        tag("p", reason, tag("span", how, class_="method"), class_="reason"),
        class_=f"card target {verdict_class(finding.verdict)}"
        + ("" if finding.gated else " faint"),
    )


def _unmeasured(result: Result) -> Markup | None:
    """Crashed and unavailable contenders, with the last lines that they printed."""
    found = unmeasured(result)
    if not found:
        return None
    items = []
    for case in found:
        log = None
        if case.log:
            log = tag("details", tag("summary", "last lines printed"), tag("pre", case.log))
        head = (
            tag("code", name(case.id)),
            tag("b", f" {case.status} "),
            case.reason or "no reason given",
        )
        items.append(tag("li", *head, log))
    return tag("div", tag("h3", "Cases without a measurement"), tag("ul", *items), class_="callout")
