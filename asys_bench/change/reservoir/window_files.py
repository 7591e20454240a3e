"""The files of a sample's windows, `<kind>-<first step>-<width>.safetensors`, replaced whole.

Windows that are written at one time share a file, `<kind>-<first step>-<steps>-<width>.safetensors`: a file
takes as long as some hundred rows, and a run of 1,000 short windows had two for each. Of two files that
cover a step the one that begins first counts, of those the longer one: a kill between the writing of a file
and the removal of those before it loses nothing and doubles no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asys_bench.change.reservoir.rows import ReservoirRows
from asys_bench.sae.checkpoint.checkpoint_files import read_tensors
from asys_bench.system.files.below import EntryKind, scan_if_there

_NAME = re.compile(r"([wc])-(\d{1,19})(?:-(\d{1,19}))?-(\d{1,19})\.safetensors")


@dataclass(frozen=True)
class WindowFile:
    """Windows of `width` host steps, from step `first` on and over so many steps."""

    path: Path
    first: int
    steps: int
    width: int


def file_name(kind: str, first: int, steps: int, width: int) -> str:
    """kind: `w`, or `c` of the constant batch."""
    middle = "" if steps == width else f"-{steps}"
    return f"{kind}-{first}{middle}-{width}.safetensors"


def window_files(folder: Path, kind: str, below: Path | None) -> list[WindowFile]:
    """Those in a folder, the oldest first, of files that begin at one step the longest first. None where the
    folder is missing.

    Raises:
        OSError: it cannot be listed.
    """
    found = []
    for path, entry in scan_if_there(folder, below=below):
        name = _NAME.fullmatch(path.name)
        if name is None or name[1] != kind or entry is not EntryKind.FILE:
            continue
        first, steps, width = int(name[2]), int(name[3] or name[4]), int(name[4])
        if 1 <= width <= steps < 1 << 62 and first < 1 << 62:
            found.append(WindowFile(path, first, steps, width))
    return sorted(found, key=lambda one: (one.first, -one.steps))


def uncovered(files: Iterable[WindowFile]) -> Iterator[tuple[WindowFile, int]]:
    """(file, the step from which its rows count) of files in the order of `window_files`; without those of
    which none does."""
    end = -1
    for one in files:
        if one.first + one.steps > end:
            yield one, max(end, one.first)
            end = one.first + one.steps


def rows_of(file: WindowFile, begin: int) -> ReservoirRows:
    """Its rows from step `begin` on.

    Raises:
        CheckpointError: it cannot be read.
        ValueError: it has no such columns.
    """
    rows = ReservoirRows.of_tensors(read_tensors(file.path))
    if begin <= file.first:
        return rows
    return rows[np.flatnonzero(rows.host_step >= begin)]
