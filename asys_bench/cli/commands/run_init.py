"""`asys-run init`: write a first configuration for a training script, with comments; runs nothing.

SCRIPT is read and never run or imported: which library trains (Stable-Baselines3, TRL, the Hugging Face
Trainer, Lightning, or PyTorch itself), which models it builds, and which of their modules to hook. What
cannot be read there is left as a comment. Without SCRIPT the configuration is of an agent of ours.
It prints what to type next.

Exit codes: 0 written · 1 it could not be written · 2 there is no such script, or the file is there already.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

DEFAULT_FILE = "asys.yaml"
_fail = partial(fail, "asys-run init", None)
EXAMPLES = (
    ("asys-run init train.py", "asys.yaml for this script"),
    ("asys-run init train.py --out configs/first.yaml --force", "elsewhere, over what is there"),
    ("asys-run init", "for an agent that learns CartPole"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """SCRIPT, `--out`, `--force`."""
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="a training script, in Python")
    parser.add_argument(
        "--out", default=DEFAULT_FILE, metavar="FILE", help=f"default: {DEFAULT_FILE}"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Write the file and say what was found."""
    from asys_bench.cli.starting.libraries import find
    from asys_bench.cli.starting.syntax import UnreadableScriptError, read_script
    from asys_bench.cli.starting.template import next_steps, render, schema_place
    from asys_bench.config.json_schema import SCHEMA_FILE
    from asys_bench.config.sources import SHIPPED

    script, out = arguments.script, Path(arguments.out)
    try:
        finding = None if script is None else find(read_script(Path(script)))
    except UnreadableScriptError as error:
        return _fail(str(error), EXIT_USAGE)
    if out.exists() and not arguments.force:
        return _fail(
            f"{out} is there already; --force replaces it, --out names another", EXIT_USAGE
        )
    schema = schema_place(SHIPPED / SCHEMA_FILE, out.parent)
    text = render(finding, script or "ppo-cartpole", arguments.out, schema)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        return _fail(f"{out}: {error.strerror}; name another file with --out", EXIT_FAILED)
    found = [f"found {finding.seen}"] if finding else []
    lines = [*found, f"wrote {out}", *next_steps(finding, script or "", arguments.out)]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    return EXIT_OK
