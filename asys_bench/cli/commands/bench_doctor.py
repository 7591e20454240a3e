"""`asys-bench doctor`: what this machine has, what is missing, and the fix; changes nothing."""

from __future__ import annotations

import argparse

from rich.console import Console

from asys_bench.cli.doctor import print_report


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def main(arguments: argparse.Namespace, console: Console) -> int:
    """1 when something that the defaults need is missing."""
    return print_report(console)
