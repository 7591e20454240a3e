"""A table that scrolls sideways in its own box when the screen is narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asys_bench.reports.page.markup import Child, Markup, tag


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], left: int = 1) -> Markup:
    """The first `left` columns hold words; the others hold numbers and are right-aligned."""
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
