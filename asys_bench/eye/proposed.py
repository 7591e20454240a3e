"""Names that a language model proposed (`asys-run names`) and that may be shown: good enough, of this
life."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from asys_bench.eye.features import Document
from asys_bench.eye.marks import Mark
from asys_bench.eye.watch import plain
from asys_bench.rundir.feature_names import ProposedName, names_file, read_names
from asys_bench.rundir.live_run import ReadingError

Names = Mapping[int, ProposedName]
NO_NAMES: Names = MappingProxyType({})
_Version = tuple[int, int, int] | None


class ProposedNames:
    """Those of one run; a file is read again once it was replaced."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._read: dict[str, tuple[_Version, Names, str]] = {}

    def of(self, label: str, generation: Callable[[int], int | None]) -> tuple[Names, str]:
        """(feature -> name, what is wrong with the file). generation: of each feature now; None: there is
        no such feature."""
        version = self._version(label)
        if label not in self._read or self._read[label][0] != version:
            try:
                self._read[label] = version, read_names(self._run_dir, label), ""
            except ReadingError as error:
                self._read[label] = version, {}, str(error)
        _, names, problem = self._read[label]
        good = {
            feature: one
            for feature, one in names.items()
            if one.is_good and generation(feature) == one.generation
        }
        return good, problem

    def _version(self, label: str) -> _Version:
        try:
            found = os.stat(names_file(self._run_dir, label), follow_symlinks=False)
        except (OSError, ValueError):
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def shown(one: ProposedName | None) -> Document | None:
    """As the pages get it."""
    if one is None:
        return None
    return {
        "name": one.name,
        "score": plain(one.score, 3),
        "baseline": plain(one.baseline, 3),
        "model": one.model,
        "checkpoint": one.checkpoint,
        "texts": one.fires + one.silent,
        "graded": one.graded,
    }


def called(feature: int, marks: Mapping[int, Mark], names: Names = NO_NAMES) -> str:
    """A person's name comes before a proposed one; "" without."""
    if feature in marks and marks[feature].name:
        return marks[feature].name
    return names[feature].name if feature in names else ""


def names_of(feature: int, marks: Mapping[int, Mark], names: Names) -> Document:
    """`name`, and `proposed` where the name is one."""
    mine = called(feature, marks)
    proposed = None if mine else names.get(feature)
    return {"name": mine or (proposed.name if proposed else ""), "proposed": shown(proposed)}
