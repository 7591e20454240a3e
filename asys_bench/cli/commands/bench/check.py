"""`asys-bench check`: read and check a suite, list what it would run; measures nothing."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

EXAMPLES = (
    ("asys-bench check suites/sla.yaml", "what it would run"),
    ("asys-bench check sla.yaml --set defaults.rounds=12", "with an override"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """The suite and `--set`."""
    parser.add_argument("suite", metavar="SUITE", help="YAML file, or the name of a shipped one")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0 when the suite is valid; problems raise ConfigError."""
    from asys_bench.harness.planning.suite_file import load_suite

    loaded = load_suite(arguments.suite, arguments.set)
    table = Table("contender", "role", "scenario", "rounds", "targets", box=None, pad_edge=False)
    for contender in loaded.contenders:
        looks = "/".join(str(look.rounds) for look in contender.looks) or str(contender.rounds)
        judged = f"{len(contender.targets)}" if contender.gated else "not judged"
        if contender.unavailable:
            judged = f"[yellow]cannot run here: {contender.unavailable}[/]"
        # Ids have brackets, which rich would read as markup.
        name = contender.id.replace("[", r"\[")
        table.add_row(name, contender.role.value, contender.scenario, looks, judged)
    console.print(table)
    console.print(f"{loaded.shown}: valid, {len(loaded.contenders)} contenders", markup=False)
    return 0
