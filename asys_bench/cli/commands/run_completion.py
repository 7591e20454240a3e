"""`asys-run completion`: a script that lets bash, zsh or fish complete asys-run and asys-bench.

The script holds every command and option: nothing of ours runs when TAB is pressed. To keep shell
start-up quick, write it to a file once and source that.
"""

from __future__ import annotations

import argparse

from rich.console import Console

SHELLS = ("bash", "zsh", "fish")
_FILES = {
    "FILE": "FILE",
    "SUITE": "FILE",
    "BEFORE": "FILE",
    "AFTER": "FILE",
    "RESULT": "FILE",
    "SCRIPT": "FILE",
}
_FOLDERS = dict.fromkeys(
    ("DIR", "FOLDER", "RUN", "RUN_A", "RUN_B", "RUN_OR_SAE_FOLDER", "BOOK"), "DIRECTORY"
)
_ALIASES = {
    "bash": "complete -o bashdefault -F _shtab_{function} {alias}",
    "zsh": "compdef {alias}={program}",
    "fish": "complete -c {alias} -w {program}",
}
"""What gives a second name of a program the completion of the first."""
EXAMPLES = (
    ('eval "$(asys-run completion bash)"', "in ~/.bashrc"),
    ('eval "$(asys-run completion zsh)"', "in ~/.zshrc, after compinit"),
    ("asys-run completion fish | source", "in ~/.config/fish/config.fish"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=SHELLS, help="whose completion")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Print the script; 0."""
    import shtab

    from asys_bench.cli import bench, run

    # A program's own options first; its commands, which it dispatches itself, as sub-parsers.
    for module in (run, bench):
        parser = module.build_parser()
        commands = parser.add_subparsers()
        for name in module.COMMANDS.names:
            made = commands.add_parser(name, help=module.COMMANDS.summary(name))
            module.COMMANDS.add(name, made)
            _complete_paths(made)
        _complete_paths(parser)
        print(shtab.complete(parser, shell=arguments.shell))
        program = parser.prog
        alias, function = program.replace("asys-", "asys-i-"), program.replace("-", "_")
        line = _ALIASES[arguments.shell]
        print(line.format(program=program, alias=alias, function=function))
    return 0


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    import shtab

    for action in parser._actions:
        word = str(action.metavar)
        what = _FILES.get(word) or _FOLDERS.get(word)
        if what is not None:
            action.complete = getattr(shtab, what)  # type: ignore[attr-defined]
