"""The top of the page: the run, whether it harmed, and whether it learnt, in eight figures."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from asys_bench.monitors.readable import (
    UNKNOWN,
    bytes_text,
    count_text,
    duration_text,
    percent_text,
    plural,
    rate_text,
    significant,
)
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.run_report.record import RunRecord


def header(record: RunRecord) -> Markup:
    """Eyebrow, name, outcome, tiles."""
    summary = record.summary
    good = summary is not None and summary.outcome == "finished" and summary.balanced
    kind = "live" if summary is None else "good" if good else "bad"
    outcome = "still running, or ended without a summary" if summary is None else summary.outcome
    account = ""
    if summary is not None and summary.bus is not None:
        account = (
            ", every packet accounted for" if summary.balanced else ", packets unaccounted for"
        )
    if summary is not None and summary.attempts:
        account += f", attempt {summary.attempts[-1].attempt}"
    tiles = [
        tag("li", tag("b", value), tag("span", label), class_="tile")
        for value, label in figures(record)
    ]
    return tag(
        "header",
        tag("p", "A-Sys-I run report", class_="eyebrow"),
        tag("h1", tag("span", name(record.run_id))),
        tag("p", tag("b", outcome), f"{account}{_when(record)}", class_="headline"),
        tag("ul", *tiles, class_="tiles"),
        class_=f"hero run {kind}",
    )


def warnings(record: RunRecord) -> Markup | None:
    """What the run itself warned of."""
    found = record.summary.warnings if record.summary is not None else ()
    if not found:
        return None
    items = [tag("li", text) for text in found]
    return tag("section", tag("h2", "Look into"), tag("ul", *items), class_="callout v-invalid")


def figures(record: RunRecord) -> list[tuple[str, str]]:
    """(value, what it is) of what is known."""
    summary = record.summary
    if summary is None:
        return [(duration_text(record.metrics.end_s), "recorded so far")]
    host, bus = summary.host, summary.bus
    found = [
        (rate_text(host.steps_per_s or math.nan), f"{plural(host.step_unit)} per second"),
        *(
            (significant(value), key.replace("_", " "))
            for key, value in sorted(
                host.figures.items(), key=lambda item: "reward" not in item[0]
            )[:1]
            if value is not None
        ),
        (duration_text(summary.elapsed_s or host.seconds), "in all"),
    ]
    if bus is not None:
        offered = bus.produced or 1
        found += [
            (count_text(bus.produced), f"packets, {bytes_text(bus.produced_bytes)}"),
            (percent_text(bus.dropped_total / offered), "dropped"),
        ]
    slowest = max((hook.latency_p99_us or 0.0 for hook in summary.hooks), default=0.0)
    if slowest:
        shown = (
            f"{significant(slowest / 1e3)} ms" if slowest >= 1000 else f"{significant(slowest)} us"
        )
        found.append((shown, "hook latency, p99 of the slowest"))
    fvus = [sae.fvu for sae in summary.saes if sae.fvu is not None]
    if fvus:
        found.append((significant(max(fvus)), "FVU of the worst SAE, held out"))
    left_out = sum(sae.outlier_rows for sae in summary.saes)
    overall = [sae.fvu_all for sae in summary.saes if sae.fvu_all is not None]
    if left_out and overall:
        found.append((significant(max(overall)), "the same, outliers included"))
        found.append((count_text(left_out), "outliers not trained on"))
    restarts = sum(worker.restarts for worker in summary.workers)
    found.append((count_text(restarts), "restarts"))
    return [(value, label) for value, label in found if value != UNKNOWN]


def _when(record: RunRecord) -> str:
    started = record.run.get("started_unix_ns")
    if not isinstance(started, int) or not 0 < started < 1 << 62:
        return ""
    moment = datetime.fromtimestamp(started / 1e9, UTC)
    return f" · {moment:%Y-%m-%d %H:%M} UTC"
