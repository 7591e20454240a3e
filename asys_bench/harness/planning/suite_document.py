"""`SuiteDocument`: the tree of a suite file, in which problems are noted by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asys_bench.config.node import Node
from asys_bench.config.paths import Path as FieldPath
from asys_bench.config.paths import format_path
from asys_bench.config.problems import Origin, Problem


class SuiteDocument:
    """The tree of a suite file, for problems at the right line."""

    def __init__(self, root: Node, shown: str, folder: Path) -> None:
        self.root, self.shown, self.folder = root, shown, folder
        self.problems: list[Problem] = []

    def origin(self, path: FieldPath) -> Origin:
        """Where `path` stands, or the nearest thing above it."""
        node, found = self.root, self.root.origin
        for part in path:
            child = node.child(part)
            if child is None:
                break
            node, found = child, child.origin
        return found

    def where(self, path: FieldPath) -> str:
        """`file:line` of `path`."""
        origin = self.origin(path)
        return origin.source if origin.line is None else f"{origin.source}:{origin.line}"

    def problem(
        self, path: FieldPath, message: str, fix: str = "", valid: Sequence[str] = (), **value: Any
    ) -> None:
        """Note a problem at `path`; `value=` is shown as what was got."""
        self.problems.append(
            Problem.at(
                self.origin(path), message, path=format_path(path), fix=fix, valid=valid, **value
            )
        )
