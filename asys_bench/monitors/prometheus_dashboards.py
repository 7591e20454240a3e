"""The Grafana dashboard, from a table of panels. Plain data in Grafana's JSON model.

Every panel shows one instance (a run's exporter), chosen at the top. Units are Grafana's ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
LOKI = {"type": "loki", "uid": "loki"}
UID = "asys-run"
SCHEMA_VERSION = 39
_ONE = 'instance=~"$instance"'
_P99 = (
    "histogram_quantile({q}, sum by (le, hook) "
    '(rate(asys_hook_latency_seconds_bucket{{instance=~"$instance"}}[$__rate_interval])))'
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries`: (PromQL, legend); `{i}` in PromQL stands for the instance's matcher."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    text: str = ""
    stacked: bool = False
    maximum: float | None = None
    thresholds: tuple[tuple[float, str], ...] = ()


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Does it harm?",
        (
            Panel("State", (("asys_run_state{{{i}}} == 1", "{{state}}"),), kind="stat", width=4),
            Panel(
                "Host steps/s",
                (("rate(asys_host_steps_total{{{i}}}[$__rate_interval])", "steps/s"),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Host time spent in hooks",
                (
                    (
                        "sum(rate(asys_hook_latency_seconds_sum{{{i}}}[$__rate_interval]))",
                        "in hooks",
                    ),
                ),
                "percentunit",
                "stat",
                4,
                "Share of wall time in which a hook held the host up.",
                thresholds=((0.02, "orange"), (0.05, "red")),
            ),
            Panel(
                "Packets dropped",
                (("sum(asys_bus_dropped_packets_total{{{i}}})", "dropped"),),
                kind="stat",
                width=4,
                thresholds=((1, "orange"),),
            ),
            Panel(
                "Worst FVU",
                (("max(asys_sae_fvu_ratio{{{i}}})", "FVU"),),
                kind="stat",
                width=4,
                thresholds=((0.2, "orange"), (0.9, "red")),
            ),
            Panel(
                "Restarts",
                (("sum(asys_worker_restarts_total{{{i}}})", "restarts"),),
                kind="stat",
                width=4,
                thresholds=((1, "orange"), (3, "red")),
            ),
            Panel(
                "Host steps per second",
                (("rate(asys_host_steps_total{{{i}}}[$__rate_interval])", "steps/s"),),
            ),
            Panel("What the host reports", (("asys_host_figure{{{i}}}", "{{figure}}"),)),
            Panel(
                "Hook latency",
                (
                    (_P99.format(q="0.5"), "p50 {{hook}}"),
                    (_P99.format(q="0.99"), "p99 {{hook}}"),
                ),
                "s",
                text="Time that a capture held up the host.",
            ),
        ),
    ),
    (
        "Does it lag?",
        (
            Panel(
                "Captured",
                (("rate(asys_hook_captured_total{{{i}}}[$__rate_interval])", "{{hook}}"),),
                "cps",
                text="Calls whose tensor went on the bus.",
            ),
            Panel(
                "Sampling rate",
                (("asys_hook_sampling_ratio{{{i}}}", "{{hook}}"),),
                "percentunit",
                maximum=1.0,
                text="It falls before anything has to be dropped.",
            ),
            Panel(
                "Dropped by reason",
                (("rate(asys_bus_dropped_packets_total{{{i}}}[$__rate_interval])", "{{reason}}"),),
                "cps",
                stacked=True,
            ),
            Panel(
                "How full each group is",
                (("asys_group_fill_ratio{{{i}}}", "{{group}}"),),
                "percentunit",
                maximum=1.0,
            ),
            Panel(
                "Delivered",
                (
                    (
                        "rate(asys_group_delivered_packets_total{{{i}}}[$__rate_interval])",
                        "{{group}}",
                    ),
                ),
                "cps",
            ),
            Panel(
                "Bytes captured",
                (("rate(asys_hook_captured_bytes_total{{{i}}}[$__rate_interval])", "{{hook}}"),),
                "Bps",
                stacked=True,
            ),
        ),
    ),
    (
        "Does it learn?",
        (
            Panel(
                "Fraction of variance unexplained",
                (("asys_sae_fvu_ratio{{{i}}}", "{{hook}}"),),
                text="On held-out rows; 0 is perfect.",
            ),
            Panel("Active features per row (L0)", (("asys_sae_l0_features{{{i}}}", "{{hook}}"),)),
            Panel(
                "Dead features",
                (("asys_sae_dead_ratio{{{i}}}", "{{hook}}"),),
                "percentunit",
                maximum=1.0,
            ),
            Panel("Loss", (("asys_sae_loss{{{i}}}", "{{hook}}"),)),
            Panel(
                "Rows trained",
                (("rate(asys_sae_rows_trained_total{{{i}}}[$__rate_interval])", "{{hook}}"),),
                "rowsps",
            ),
            Panel(
                "Rows archived",
                (("rate(asys_archive_rows_total{{{i}}}[$__rate_interval])", "{{hook}}"),),
                "rowsps",
            ),
        ),
    ),
    (
        "Processes",
        (
            Panel(
                "CPU",
                (("rate(asys_process_cpu_seconds_total{{{i}}}[$__rate_interval])", "{{worker}}"),),
                "percentunit",
                stacked=True,
                text="1 is one core.",
            ),
            Panel(
                "Memory", (("asys_process_resident_memory_bytes{{{i}}}", "{{worker}}"),), "bytes"
            ),
            Panel(
                "Time since the last heartbeat",
                (("asys_worker_heartbeat_age_seconds{{{i}}}", "{{worker}}"),),
                "s",
            ),
            Panel(
                "Worker states",
                (("asys_worker_state{{{i}}} == 1", "{{worker}} {{state}}"),),
                kind="table",
                width=12,
            ),
            Panel(
                "Restarts of the last ten minutes",
                (("increase(asys_worker_restarts_total{{{i}}}[10m])", "{{worker}}"),),
                width=12,
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard "A-Sys-I run"."""
    panels: list[dict[str, Any]] = []
    top = 0
    for name, row in ROWS:
        panels.append({"type": "row", "title": name, "collapsed": False, "id": len(panels) + 1,
                       "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []})  # fmt: skip
        top = _place(row, panels, top + 1)
    panels.append(_logs(len(panels) + 1, top))
    return {
        "uid": UID,
        "title": "A-Sys-I run",
        "tags": ["asys"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": [_variable()]},
        "annotations": {"list": [_restarts()]},
        "panels": panels,
    }


def queries() -> list[str]:
    """Every PromQL expression on the dashboard."""
    found = [_expr(query) for _, row in ROWS for panel in row for query, _ in panel.queries]
    return [*found, _restarts()["expr"], str(_variable()["query"]["query"])]


def _place(row: tuple[Panel, ...], panels: list[dict[str, Any]], top: int) -> int:
    """Add a row's panels from left to right; returns the next free line."""
    x, height = 0, 0
    for panel in row:
        if x + panel.width > 24:
            x, top, height = 0, top + height, 0
        own = 4 if panel.kind == "stat" else 8
        panels.append(_panel(panel, len(panels) + 1, x, top, own))
        x, height = x + panel.width, max(height, own)
    return top + height


def _panel(panel: Panel, number: int, x: int, y: int, height: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.thresholds]
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {
            "lineWidth": 2,
            "fillOpacity": 25 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "custom": custom,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.unit in ("percentunit", "s", "bytes"):
        defaults["min"] = 0
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": PROMETHEUS,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": PROMETHEUS,
                "expr": _expr(query),
                "legendFormat": legend,
                **({"instant": True, "format": "table"} if panel.kind == "table" else {}),
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "stat":
        state = "{{state}}" in panel.queries[0][1]
        return {
            "colorMode": "value",
            "graphMode": "none" if state else "area",
            "textMode": "name" if state else "value",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        }
    return {"showHeader": True}


def _expr(query: str) -> str:
    return query.format(i=_ONE) if "{{{i}}}" in query else query


def _variable() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "run",
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": "label_values(asys_run_info, instance)", "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "multi": False,
        "includeAll": False,
    }


def _restarts() -> dict[str, Any]:
    return {
        "name": "worker restarts",
        "datasource": PROMETHEUS,
        "enable": True,
        "iconColor": "orange",
        "expr": "changes(asys_worker_restarts_total[30s]) > 0",
        "titleFormat": "{{worker}} restarted",
    }


def _logs(number: int, top: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "logs",
        "title": "What happened",
        "description": "monitor.log and the workers' own logs, by way of Alloy and Loki.",
        "datasource": LOKI,
        "gridPos": {"x": 0, "y": top, "w": 24, "h": 10},
        "options": {"showTime": True, "wrapLogMessage": True, "sortOrder": "Descending"},
        "targets": [{"refId": "A", "datasource": LOKI, "expr": '{job="asys"}'}],
    }
