"""`asys-bench new-plugin`: a package of your own with a plugin in it that works from the first minute."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rich.console import Console

from asys_bench.cli.plugin_template import backend_files

USAGE = 2
_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")


def add(parser: argparse.ArgumentParser) -> None:
    """KIND, NAME and `--dir`."""
    parser.add_argument("kind", choices=("backend",), help="what the plugin is")
    parser.add_argument("name", metavar="NAME", help="its name, as bus.backend will say it")
    parser.add_argument(
        "--dir", metavar="FOLDER", help="where the package goes; default: ./asys-NAME (dashes)"
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """0, or 2 when the name cannot be one or the folder is not empty."""
    name: str = arguments.name
    if not _NAME.fullmatch(name):
        console.print(
            f"asys-bench new-plugin: {name!r} must be 2 to 41 lower-case letters, digits and "
            "underscores, beginning with a letter",
            style="red",
            markup=False,
        )
        return USAGE
    folder = Path(arguments.dir or f"asys-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        console.print(
            f"asys-bench new-plugin: {folder} is there already; give an empty --dir",
            style="red",
            markup=False,
        )
        return USAGE
    for relative, text in backend_files(name).items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        console.print(f"wrote {path}", markup=False)
    console.print(
        f"\nNext:\n  pip install -e {folder}\n  asys-bench list\n"
        f"  python -m asys_bench.conformance {name}\n"
        f"Then replace it method by method: {folder}/src/asys_{name}/bus.py",
        markup=False,
    )
    return 0
