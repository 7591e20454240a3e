"""What `asys-bench` and `asys-run` share: a command is a module, `run_<name>` of this folder or `<name>` of
its folder `bench`, with `EXAMPLES`, `add(parser)` and `main(arguments, console) -> int`.

A module is imported when its command is named: `--help` reads the first lines of their sources, and
a command that only prints a page does not wait for torch. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import asys_bench
from asys_bench.contracts.exit_codes import EXIT_USAGE

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 140
_WIDEST_EXAMPLE = 100


@dataclass(frozen=True)
class Commands:
    """The commands of one program. modules: the beginning of their modules' names in this folder, `run_` or
    `bench.`; a command's own name follows, with underscores for dashes."""

    program: str
    names: tuple[str, ...]
    modules: str

    def run(self, argv: Sequence[str]) -> int:
        """`PROGRAM NAME ...`; the exit code. A wrong configuration is shown in full, exit code 2."""
        from rich.console import Console

        module = self._module(argv[0])
        arguments = self.parser(argv[0]).parse_args(argv[1:])
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
        from asys_bench.config.problems import ConfigError

        try:
            code: int = module.main(arguments, console)
        except ConfigError as error:
            Console(stderr=True, highlight=False).print(str(error), style="red", markup=False)
            return EXIT_USAGE
        return code

    def parser(self, name: str) -> argparse.ArgumentParser:
        """The parser of one command, whose module is imported; `--help` ends with its examples."""
        module = self._module(name)
        parser = argparse.ArgumentParser(
            prog=f"{self.program} {name}",
            description=module.__doc__,
            epilog="\n".join(_examples(module.EXAMPLES)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add(name, parser)
        return parser

    def add(self, name: str, parser: argparse.ArgumentParser) -> None:
        """The arguments of one command, for `parser`."""
        self._module(name).add(parser)

    def page(self, examples: Sequence[tuple[str, str]]) -> str:
        """The end of `--help`: a line per command, and commands to copy with what they do."""
        commands = [f"  {name:<12} {self.summary(name)}" for name in self.names]
        return "\n".join(
            [
                f"commands ({self.program} COMMAND --help explains one):",
                *commands,
                "",
                *_examples(examples),
            ]
        )

    def summary(self, name: str) -> str:
        """The first line of a command's docstring, without its name; its module is not imported."""
        source = Path(__file__).parent / f"{self._name(name).replace('.', '/')}.py"
        with source.open(encoding="utf-8") as lines:
            return lines.readline().strip().strip('"').split("`: ", 1)[-1]

    def unknown(self, name: str) -> str:
        """What to say about a word that names no command."""
        from asys_bench.config.problems import did_you_mean

        hint = did_you_mean(name, self.names)
        return (
            f"no command {name!r}{'; ' + hint if hint else ''} (commands: {', '.join(self.names)})"
        )

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{__name__}.{self._name(name)}")

    def _name(self, name: str) -> str:
        return f"{self.modules}{name.replace('-', '_')}"


def _examples(examples: Sequence[tuple[str, str]]) -> list[str]:
    """Commands to copy, each with what it does beside it, or below it where that would be too wide."""
    width = max(len(command) for command, _ in examples)
    lines = [f"  {command:<{width}}   {what}" for command, what in examples]
    if max(map(len, lines)) > _WIDEST_EXAMPLE:
        lines = [line for command, what in examples for line in (f"  {command}", f"      {what}")]
    return ["examples:", *lines]


def fail(command: str, console: Console | None, message: str, code: int) -> int:
    """Say why `command` ("asys-run train") does not go on; returns `code`.

    console: None is standard error, for commands whose output is read by others.
    """
    from rich.console import Console

    from asys_bench.contracts.names import printable_lines

    if console is None:
        console = Console(stderr=True, highlight=False)
    console.print(
        f"{command}: {printable_lines(message)}", style="red", markup=False, soft_wrap=True
    )
    return code


def add_version(parser: argparse.ArgumentParser) -> None:
    """`--version`."""
    parser.add_argument(
        "--version", action="version", version=f"asys-i {asys_bench.__version__}",
        help="print the version and leave",
    )  # fmt: skip
