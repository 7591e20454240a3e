"""`asys-bench`: measure, judge, report.

Exit codes: 0 pass · 1 fail · 2 usage or configuration · 3 inconclusive · 4 invalid (a crash, a
timeout, broken integrity, noise) · 5 environment refused · 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys

from asys_bench.cli.commands import Commands, add_version
from asys_bench.contracts.exit_codes import EXIT_USAGE
from asys_bench.harness.measuring.child import keep_exit_codes

COMMANDS = Commands(
    "asys-bench",
    (
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
    ),
    "bench.",
)
EXAMPLES = (
    ("asys-bench doctor", "what this machine lacks, and the fix"),
    ("asys-bench run smoke.yaml", "under a minute: does everything work, with verdicts"),
    ("asys-bench report runs/bench/<run>", "a stored result, worst first"),
)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `asys-bench` and `asys-i-bench`; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv is None:  # the program itself: nobody else's code runs in this process
        keep_exit_codes()
    if argv[:1] == ["--config"] or (argv[:1] and argv[0].startswith("--config=")):
        argv = ["run", *argv]  # asys-i-bench --config configs/benchmark.yaml
    parser = build_parser()
    if not argv:
        parser.print_help()
        return EXIT_USAGE
    if argv[0] in COMMANDS.names:
        return COMMANDS.run(argv)
    if argv[0].startswith("-"):
        parser.parse_args(argv)  # --help and --version leave here
        parser.error("name a command")
    parser.error(COMMANDS.unknown(argv[0]))


def build_parser() -> argparse.ArgumentParser:
    """What stands before a command."""
    parser = argparse.ArgumentParser(
        prog="asys-bench",
        usage="asys-bench COMMAND ...",
        description=__doc__,
        epilog=COMMANDS.page(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
