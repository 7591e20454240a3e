"""`asys-bench selftest`: the bench judged by itself: A/A must not differ, a 5 % delay must be seen."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

EXAMPLES = (("asys-bench selftest", "what verdicts are worth on this machine"),)


def add(parser: argparse.ArgumentParser) -> None:
    """`--set` and `--out`."""
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--out", metavar="DIR", default="runs/bench")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0 when both are as they should be, 1 when not, 4 when it could not be measured."""
    from asys_bench.harness.selftest import run_selftest

    result, found, code = run_selftest(Path(arguments.out), arguments.set)
    for one in found:
        mark = "ok  " if one.ok else "FAIL"
        print(f"{mark} {one.name:<10} want {one.want:<26} got {one.got} x plain")
    for reason in result.validity.reasons:
        print(f"{reason.kind}: {reason.case}: {reason.message}")
    print(f"{result.counts.rounds} rounds in {result.run.elapsed_s:.1f} s")
    return code
