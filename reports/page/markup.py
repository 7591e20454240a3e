"""HTML and SVG as nested calls. Whatever is not `Markup` is text, and is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Should anything ever slip through the escaping, the browser neither runs nor fetches it."""


class Markup(str):
    """Text that is already HTML. Only this module makes it from data."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | Iterable[Child] | None"
Attribute: TypeAlias = "str | float | int | bool | None"
VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polyline", "polygon", "use"})


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """`tag("p", "a < b", class_="note")`. Attributes: `_` becomes `-`, a trailing one is dropped;
    None and False leave the attribute out, True writes it without a value."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        parts.append(spelled if value is True else f'{spelled}="{html.escape(_text(value))}"')
    opening = " ".join(parts)
    inside = flat(children)
    if name in VOID and not inside:
        return Markup(f"<{opening}>" if name in ("meta", "br") else f"<{opening}/>")
    return Markup(f"<{opening}>{inside}</{name}>")


def name(text: str) -> Markup:
    """A long dotted name that may break after a dot or before a bracket."""
    return Markup(re.sub(r"(?<=\.)(?=\w)|(?=\[)", "<wbr>", html.escape(text)))


def flat(child: Child) -> Markup:
    """Children as one piece; plain strings are escaped."""
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return Markup(html.escape(child))
    return Markup("".join(flat(one) for one in child))


def _text(value: str | float) -> str:
    """Coordinates to a hundredth: a tenth of a pixel is not seen, and the file stays small."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], left: int = 1) -> Markup:
    """A table that scrolls sideways in its own box when the screen is narrow. The first `left` columns
    hold text; the others hold numbers and are right-aligned."""
    columns = [
        tag("th", name, scope="col", class_=None if index < left else "right")
        for index, name in enumerate(head)
    ]
    body = [
        tag(
            "tr",
            *(
                tag("td", cell, class_=None if index < left else "right")
                for index, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    inside = tag("table", tag("thead", tag("tr", *columns)), tag("tbody", *body))
    return tag("div", inside, class_="scroll card", tabindex="0", role="region", aria_label="table")
