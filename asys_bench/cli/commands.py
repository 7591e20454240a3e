"""What `asys-bench` and `asys-run` share: a command is a module with `add(parser)` and
`main(arguments, console) -> int`."""

from __future__ import annotations

import argparse
from types import ModuleType

from rich.console import Console

from asys_bench.config.problems import ConfigError
from asys_bench.harness.words import EXIT_USAGE

_WIDTH_WITHOUT_TERMINAL = 140


def summary_of(module: ModuleType) -> str:
    """The first line of a command's docstring, without its name."""
    return (module.__doc__ or "").split("\n", 1)[0].split("`: ", 1)[-1]


def execute(module: ModuleType, arguments: argparse.Namespace) -> int:
    """Run a command; a wrong configuration is shown in full, exit code 2."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    try:
        code: int = module.main(arguments, console)
    except ConfigError as error:
        Console(stderr=True, highlight=False).print(str(error), style="red", markup=False)
        return EXIT_USAGE
    return code
