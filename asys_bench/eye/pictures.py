"""Pictures that the run report draws, as trees that a page builds node by node.

A page never turns text into markup. `tree` gives `[name, {attribute: value}, [children]]`, children being
trees and texts; names and attributes that no picture has are left out here, and again in `pages/dom.js`.
"""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from asys_bench.reports.page.markup import Markup

Tree = list[Any]
NAMES = frozenset(
    (
        *("svg", "g", "path", "rect", "circle", "line", "polyline", "polygon", "text", "title"),
        *("ul", "li", "span", "b", "i", "p", "div", "wbr"),
    )
)
ATTRIBUTES = {
    name.lower(): name
    for name in (
        *("class", "viewBox", "d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx"),
        *("width", "height", "points", "transform", "role", "title", "preserveAspectRatio"),
        *("text-anchor", "aria-hidden", "aria-label"),
    )
}
_VOID = frozenset({"wbr"})


def tree(markup: Markup) -> Tree:
    """The one element that `markup` is."""
    parser = _Parser()
    parser.feed(markup)
    parser.close()
    found = next((one for one in parser.root if isinstance(one, list)), None)
    return found if found is not None else ["span", {}, []]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root: list[Any] = []
        self._open: list[list[Any]] = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        children = self._add(tag, attrs)
        if tag not in _VOID:
            self._open.append(children)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID and len(self._open) > 1:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].append(data)

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> list[Any]:
        children: list[Any] = []
        if tag in NAMES:
            kept = {ATTRIBUTES[key]: value or "" for key, value in attrs if key in ATTRIBUTES}
            self._open[-1].append([tag, kept, children])
        return children
