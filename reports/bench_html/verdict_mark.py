"""A verdict by shape, word and colour: colour alone must never say it."""

from __future__ import annotations

from asys_bench.harness.results.words import Verdict
from asys_bench.reports.page.markup import Markup, tag

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
