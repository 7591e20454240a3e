"""The run over its time: the host, what was captured and lost, and the moments worth knowing."""

from __future__ import annotations

from asys_bench.monitors.readable import duration_text, percent_text, plural
from asys_bench.reports.page.markup import Markup, tag
from asys_bench.reports.run_report.curves import Line, Moment, chart
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.reports.run_report.series import SeriesKey, rate, total

MOST_FIGURES = 4
_EVENTS = {
    "worker_restarted": (True, "{worker} restarted"),
    "worker_failed": (True, "{worker} died"),
    "worker_quarantined": (True, "{worker} quarantined"),
    "drops_began": (True, "drops began ({reason})"),
    "hook_failed": (True, "hook {hook} switched itself off"),
    "sampling_rate_lowered": (False, "sampling of {hook} lowered to {to}"),
    "archive_write_errors": (True, "the archive could not be written"),
    "remote_away": (True, "{worker} lost its receiver"),
    "remote_connected": (False, "{worker} reached a receiver"),
    "remote_drops_began": (True, "{worker} began to drop ({reason})"),
    "remote_refused": (True, "{worker} was refused ({reason})"),
    "receiver_refused": (True, "somebody was refused ({reason})"),
}


def moments(record: RunRecord) -> list[Moment]:
    """The events of monitor.log that are worth a mark."""
    found = []
    for event in record.events:
        known = _EVENTS.get(event.name)
        if known is not None:
            fields = {key: _told(value) for key, value in event.fields.items()}
            try:
                words = known[1].format_map(fields)
            except KeyError:
                words = event.name.replace("_", " ")
            found.append(Moment(event.time_s, words, known[0]))
    return found


def _told(value: object) -> str:
    """Rates are the only fractions that events carry."""
    return percent_text(value) if isinstance(value, float) else str(value)


def timeline(record: RunRecord) -> list[Markup]:
    """The figures, those without data left out."""
    metrics, end_s = record.metrics, record.metrics.end_s
    marks = [moment for moment in moments(record) if moment.bad]
    unit = f"{plural(record.step_unit)}/s"

    def lines(
        metric: str, field: str, as_rate: bool = True, stat: str = "", window: str | None = None
    ) -> list[Line]:
        keys = metrics.find(metric, stat=stat, window=window)
        return [
            Line(
                getattr(key, field) or key.metric,
                rate(metrics.points(key)) if as_rate else metrics.points(key),
            )
            for key in keys
        ]

    drawn = [
        chart(f"Host: {unit}", "", lines("host_steps", "slot"), end_s, moments=marks),
        *(
            chart(_title(key), "", [Line(_title(key), metrics.points(key))], end_s, moments=marks)
            for key in _host_figures(record)
        ),
        chart("Captured", "calls/s", lines("hook_captured", "hook"), end_s, moments=marks),
        chart(
            "Sampling rate",
            "",
            lines("hook_sampling_rate", "hook", as_rate=False),
            end_s,
            moments=marks,
            share=True,
        ),
        chart("Dropped", "packets/s", _drops(record), end_s, moments=marks),
        chart(
            "Waiting on the bus",
            "packets",
            lines("data_bus_ready_count", "group", as_rate=False),
            end_s,
            moments=marks,
        ),
        chart(
            "Hook latency, 99th percentile of each interval",
            "ms",
            lines("hook_latency_ms", "hook", as_rate=False, stat="p99", window="interval"),
            end_s,
            moments=marks,
        ),
        chart("Archived", "rows/s", lines("archive_rows", "hook"), end_s, moments=marks),
    ]
    return [figure for figure in drawn if figure is not None]


def event_list(record: RunRecord) -> Markup | None:
    """What happened, in words; None for a quiet run."""
    found = moments(record)
    if not found:
        return None
    shown = found[:40]
    items = [
        tag(
            "li",
            tag("code", duration_text(m.time_s)),
            tag("span", m.what),
            class_="bad" if m.bad else None,
        )
        for m in shown
    ]
    rest = len(found) - len(shown)
    if rest:
        items.append(tag("li", tag("code", "..."), tag("span", f"{rest:,} more in monitor.log")))
    return tag("ul", *items, class_="card events")


def _host_figures(record: RunRecord) -> list[SeriesKey]:
    keys = [
        key
        for key in record.metrics.series
        if key.slot == "host" and key.metric.startswith("host_") and key.metric != "host_steps"
    ]
    return sorted(keys, key=lambda key: ("reward" not in key.metric, key.metric))[:MOST_FIGURES]


def _title(key: SeriesKey) -> str:
    return key.metric.removeprefix("host_").replace("_", " ")


def _drops(record: RunRecord) -> list[Line]:
    """By reason, or one line of zeros: that nothing was lost is worth showing."""
    metrics = record.metrics
    keys = metrics.find("data_bus_drop_count")
    drawn = [Line(key.reason, rate(metrics.points(key))) for key in keys]
    losing = [line for line in drawn if any(value > 0 for _, value in line.points)]
    return losing or [Line("any reason", rate(total(metrics.points(key) for key in keys)))]
