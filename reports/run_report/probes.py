"""Linear probes from a hook to labels: what each is worth on held-out rows, and how that came."""

from __future__ import annotations

from collections.abc import Sequence

from asys_bench.monitors.readable import count_text
from asys_bench.reports.page.markup import Markup, name, table, tag
from asys_bench.reports.page.quantity import brief, with_interval
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.rundir.probes import FoundProbe

COLUMNS = ("label", "held out", "of", "rows", "blocks", "over the run (host step)")
MOST_MOMENTS = 4
MOST_CLASSES = 6


def probe_parts(record: RunRecord) -> list[Markup]:
    """A table for each hook."""
    return [_hook(hook, probes) for hook, probes in record.probes.items() if probes]


def _hook(hook: str, probes: Sequence[FoundProbe]) -> Markup:
    first = probes[0]
    about = f"from {first.features}; a block is {first.block}"
    rows = [
        [
            one.label,
            f"{one.metric.upper()} {with_interval(one.value, one.low, one.high)}",
            _classes(one),
            f"{one.rows:,} + {one.held_out_rows:,}",
            f"{one.held_out_blocks:,}",
            _moments(one),
        ]
        for one in probes
    ]
    head = tag("h3", name(hook), tag("span", about, class_="unit"))
    return tag("section", head, table(COLUMNS, rows, left=1), class_="family")


def _classes(probe: FoundProbe) -> str:
    if probe.classes is None:
        return "a number"
    shown = [one if isinstance(one, str) else brief(one) for one in probe.classes[:MOST_CLASSES]]
    more = len(probe.classes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _moments(probe: FoundProbe) -> str:
    """Some of its scores, the first and the last among them."""
    count = len(probe.history)
    places = sorted({round(n * (count - 1) / (MOST_MOMENTS - 1)) for n in range(MOST_MOMENTS)})
    chosen = [probe.history[place] for place in places] if count else []
    return ", ".join(f"{count_text(step)}: {value:.3g}" for step, value, *_ in chosen)
