"""`asys-bench`: measure, judge, report.

Exit codes: 0 pass · 1 fail · 2 usage or configuration · 3 inconclusive · 4 invalid (a crash, a
timeout, broken integrity, noise) · 5 environment refused · 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from asys_bench.cli.commands import execute, summary_of

_COMMANDS = (
    "run",
    "check",
    "list",
    "doctor",
    "report",
    "explain",
    "judge",
    "compare",
    "history",
    "selftest",
    "export",
    "new-plugin",
)
"""Each is `asys_bench.cli.bench_<name>` (dashes as underscores) with `add(parser)` and
`main(arguments, console)`."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of `asys-bench` and `asys-i-bench`; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--config"] or (words[:1] and words[0].startswith("--config=")):
        words = ["run", *words]  # asys-i-bench --config configs/benchmark.yaml
    parser = argparse.ArgumentParser(
        prog="asys-bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        module = importlib.import_module(_module_name(name))
        # argparse formats the help line, so a per cent sign is doubled.
        own = commands.add_parser(name, help=summary_of(module).replace("%", "%%"))
        module.add(own)
    arguments = parser.parse_args(words)
    return execute(importlib.import_module(_module_name(arguments.command)), arguments)


def _module_name(command: str) -> str:
    return f"asys_bench.cli.bench_{command.replace('-', '_')}"


if __name__ == "__main__":
    sys.exit(main())
