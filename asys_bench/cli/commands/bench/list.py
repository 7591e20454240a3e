"""`asys-bench list`: every plugin, loaded or not, and the shipped suites."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from asys_bench.registry import KINDS, Plugin, registry

EXAMPLES = (
    ("asys-bench list", "every plugin and suite"),
    ("asys-bench list --metrics", "and what each scenario measures"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """`--metrics` shows what each scenario measures."""
    parser.add_argument("--metrics", action="store_true", help="the metrics of each scenario")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """1 when a plugin failed to load."""
    if arguments.metrics:
        return _metrics(console)
    from asys_bench.harness.planning.suite_file import shipped_suites

    table = Table("kind", "name", "summary", box=None, pad_edge=False)
    failed = False
    for kind in KINDS:
        known = registry(kind)
        failures = known.failures()
        for name in known.names():
            if name in failures:
                failed = True
                table.add_row(kind, name, f"[red]does not load: {failures[name]}[/]")
            else:
                plugin: Plugin = known.get(name, object)  # type: ignore[type-var, assignment]
                table.add_row(kind, name, plugin.summary)
    for name in shipped_suites():
        table.add_row("suite", f"suites/{name}", "")
    console.print(table)
    return 1 if failed else 0


def _metrics(console: Console) -> int:
    from asys_bench.contracts.scenario import ScenarioPlugin
    from asys_bench.harness.plugins import metrics_of

    table = Table(
        "scenario", "takes", "metric", "better", "stats", "what", box=None, pad_edge=False
    )
    stats = {"samples": "pN median mean min", "round": "median mean min", "count": "count rate"}
    known = registry("scenario")
    failures = known.failures()
    for name in known.names():
        if name in failures:
            table.add_row(name, "", f"[red]does not load: {failures[name]}[/]")
            continue
        plugin = known.get(name, ScenarioPlugin)
        for metric, spec in metrics_of(plugin).items():
            table.add_row(name, plugin.takes, metric, spec.better, stats[spec.kind], spec.summary)
    console.print(table)
    return 1 if failures else 0
