"""A sample of one hook: at most `MOST_WINDOWS` windows of equally many host steps, n rows of each.

The first windows are one step wide. When there are too many, windows 2k and 2k + 1 become one, which keeps
n of their rows: old windows are thinned by half, and none is ever dropped. So every part of a run has as
many rows as any other, at any moment of a run of any length.

Each window is a file, `w-<first step>-<width>.safetensors`, replaced whole. A file of a wide window makes
those of its parts obsolete, so that a kill between the two writes loses nothing. Only windows that change
are in memory.

Rows of the constant evaluation batch are kept apart (`c-`): at each moment the rows with the smallest
hash of their place in the batch, so the same ones, and of two moments the earlier stays.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.reservoir.rows import ReservoirRows
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import RESERVOIR_DIR
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_tensors
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import EntryKind, make_folders, remove, scan_if_there

log = logging.getLogger(__name__)
MOST_WINDOWS = 256
"""After a joining there are half as many: a window is 0.4 to 0.8 % of the run."""
MOST_ROWS = 512
"""Of a window: 65,536 to 131,072 rows of a run. A feature that fires once in 1,000 rows then has a birth
known to 1 % of the run (`statistics.place_of_rise`), one that fires in 1 % to 0.1 %; twice as many rows
cost twice as much, here and in each pass."""
CONSTANT_ROWS = 256
"""Of the constant batch at each moment; fewer, because they are the same rows."""
WAITING_ROWS, WAITING_SHARE = 32, 0.5
"""Rows of a window that are not compared with those that it keeps: more take memory, fewer make it compare
more often. At this share, a window of any length is sorted once for each half that it grows by."""
MARGIN = 0.9
"""Of the bytes: a window that is joined is there twice for a moment, and files have headers."""
_NAME = re.compile(r"([wc])-(\d{1,19})-(\d{1,19})\.safetensors")


def reservoir_folder(run_dir: Path, hook: str) -> Path:
    """Where the windows of a hook are."""
    return run_dir / RESERVOIR_DIR / file_slug(hook)


def rows_per_window(row_bytes: int, most_bytes: int) -> int:
    """n, for rows of that many bytes."""
    return max(1, min(MOST_ROWS, int(MARGIN * most_bytes) // (MOST_WINDOWS * row_bytes)))


@dataclass
class _Window:
    """rows: None where they are in the file alone. limit: the largest rank that may still be kept."""

    first: int
    rows: ReservoirRows | None
    limit: float = float("inf")
    changed: bool = True
    waiting: list[ReservoirRows] = field(default_factory=list)
    """Rows that were not compared with the others yet."""


class WindowedSample:
    """The windows of one hook and kind. `folder` is None: nothing is written (a sample in memory).

    constant: of two windows that are joined the earlier stays, and nothing of the other.
    """

    def __init__(
        self,
        rows_each: int,
        folder: Path | None,
        below: Path | None = None,
        *,
        constant: bool = False,
    ) -> None:
        self.rows_each, self.width = rows_each, 1
        self._folder, self._below, self._constant = folder, below, constant
        self._prefix = "c" if constant else "w"
        self._windows: dict[int, _Window] = {}
        self._obsolete: list[Path] = []
        self._kind: tuple[torch.dtype, int] | None = None
        if folder is not None:
            self._adopt()

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def newest(self) -> int:
        """The first step of the newest window; -1 without any."""
        return max(self._windows, default=-1)

    def first_of(self, step: int) -> int:
        """Where the window of a host step begins."""
        return step - step % self.width

    def limits(self, step_P: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Rows of each of these host steps are kept if their rank is below."""
        first_W, inverse_P = np.unique(step_P - step_P % self.width, return_inverse=True)
        windows = [self._windows.get(first) for first in first_W.tolist()]
        limit_W = np.array([np.inf if one is None else one.limit for one in windows])
        return np.asarray(limit_W[inverse_P.reshape(-1)])

    def extend(self, rows: ReservoirRows) -> None:
        """Rows of any windows."""
        width = -1
        while (
            len(rows) and width != self.width
        ):  # a window that is added may make all of them wider
            width = self.width
            first_N = rows.host_step - rows.host_step % width
            for first in np.unique(first_N).tolist():
                inside = first_N == first
                self.add(first, rows if inside.all() else rows[np.flatnonzero(inside)])
                if self.width != width:
                    break

    def add(self, first: int, rows: ReservoirRows) -> None:
        """Rows of the window that begins at step `first`, all of them within it."""
        if not len(rows):
            return
        kind = rows.values.dtype, rows.values.shape[1]
        if self._kind is None:
            self._kind = kind
        if kind != self._kind:
            raise ValueError(f"rows are {kind}, earlier ones {self._kind}")
        window = self._windows.get(first)
        if window is None:
            window = self._windows[first] = _Window(first, None)
            self._put(window, rows)
        elif self._constant and rows.host_step.min() > self._read(window).host_step.min():
            return
        else:
            window.waiting.append(rows)
            window.changed = True
            if sum(map(len, window.waiting)) >= max(WAITING_ROWS, WAITING_SHARE * self.rows_each):
                self._read(window)
        while len(self._windows) > MOST_WINDOWS:
            self._join()

    def _put(self, window: _Window, rows: ReservoirRows) -> None:
        rows = rows.smallest(self.rows_each)
        window.rows, window.changed = rows, True
        window.limit = float(rows.rank.max()) if len(rows) == self.rows_each else float("inf")

    def _join(self) -> None:
        """Windows of twice the width."""
        before, self.width = self._windows, 2 * self.width
        self._windows = {}
        for first in sorted(before):
            part = before[first]
            wide = self.first_of(first)
            if self._folder is not None:
                self._obsolete.append(self._path(part.first, self.width // 2))
            there = self._windows.get(wide)
            if there is None:
                rows = self._read(part)
                self._windows[wide] = made = _Window(wide, None)
                self._put(made, rows)
            elif not self._constant:
                self._put(there, ReservoirRows.joined([self._read(there), self._read(part)]))

    def _read(self, window: _Window) -> ReservoirRows:
        if window.rows is None:
            assert self._folder is not None
            path = self._path(window.first, self.width)
            # `_join` reads parts, which are half as wide as windows are by then.
            if not path.exists():
                path = self._path(window.first, self.width // 2)
            window.rows = ReservoirRows.of_tensors(read_tensors(path))
        if window.waiting:
            rows, window.waiting = ReservoirRows.joined([window.rows, *window.waiting]), []
            self._put(window, rows)
        assert window.rows is not None
        return window.rows

    # ---- files

    def flush(self, sync: bool = False) -> None:
        """Write what has changed; keep in memory only the newest window.

        Raises:
            OSError: the disk refuses; what could not be written is tried again the next time.
        """
        if self._folder is None:
            return
        newest = self.newest
        for first, window in self._windows.items():
            if window.changed:
                self._write(window, sync)
            if first != newest:
                window.rows = None
        for path in self._obsolete:
            remove(path, below=self._below or self._folder)
        self._obsolete.clear()

    @property
    def unwritten_bytes(self) -> int:
        return sum(
            window.rows.values.nbytes + window.rows.about.nbytes
            for window in self._windows.values()
            if window.changed and window.rows is not None
        )

    def _write(self, window: _Window, sync: bool) -> None:
        from safetensors.torch import save

        assert self._folder is not None
        make_folders(self._folder, below=self._below or self._folder.parent)
        data = save(self._read(window).tensors())
        replace_file(self._path(window.first, self.width), data, sync=sync)
        window.changed = False

    def _path(self, first: int, width: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._prefix}-{first}-{width}.safetensors"

    def _adopt(self) -> None:
        """Go on with what an earlier worker has written."""
        assert self._folder is not None
        found = list(windows_in(self._folder, self._prefix, self._below))
        if not found:
            return
        self.width = max(width for _, width, _ in found)
        for first, width, path in found:
            wide = self.first_of(first)
            covered = width < self.width and any(
                other == wide and whole == self.width for other, whole, _ in found
            )
            if width != self.width or first != wide:
                self._obsolete.append(path)
            if covered:
                continue
            try:
                rows = ReservoirRows.of_tensors(read_tensors(path))
            except (CheckpointError, ValueError) as error:
                log.error("%s: left out of the reservoir: %s", path, error)
                continue
            self._kind = rows.values.dtype, rows.values.shape[1]
            there = self._windows.get(wide)
            if there is None:
                there = self._windows[wide] = _Window(wide, None)
            elif self._constant:
                continue
            else:
                rows = ReservoirRows.joined([self._read(there), rows])
            self._put(there, rows)
            there.changed = width != self.width
        newest = self.newest
        for first, window in self._windows.items():
            if first != newest and not window.changed:
                window.rows = None

    def rows(self) -> ReservoirRows | None:
        """All rows in the host's order; None without any."""
        parts = [self._read(self._windows[first]) for first in sorted(self._windows)]
        return ReservoirRows.joined(parts).of_time() if parts else None


def windows_in(folder: Path, prefix: str, below: Path | None) -> Iterator[tuple[int, int, Path]]:
    """(first step, width, file) of the windows in a folder, the oldest first; of windows that begin at
    one step the widest first. None where it is missing.

    Raises:
        OSError: it cannot be listed.
    """
    found = []
    for path, kind in scan_if_there(folder, below=below):
        name = _NAME.fullmatch(path.name)
        if name is not None and name[1] == prefix and kind is EntryKind.FILE:
            first, width = int(name[2]), int(name[3])
            if 1 <= width < 1 << 62 and first < 1 << 62:
                found.append((first, width, path))
    yield from sorted(found, key=lambda one: (one[0], -one[1]))
