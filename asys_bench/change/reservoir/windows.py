"""A sample of one hook: at most `MOST_WINDOWS` windows of equally many host steps, n rows of each.

The first windows are one step wide. When there are too many, windows 2k and 2k + 1 become one, which keeps
n of their rows: old windows are thinned by half, and none is ever dropped. So every part of a run has as
many rows as any other, at any moment of a run of any length.

A window has every row whose rank is below its limit, that of its n-th row. A window that begins has that
of the last ones for its own, and a margin: the first rows of it would be kept only to be thrown away. One
that turns out to have fewer rows than they keeps less than n.

Windows are in files (`window_files`). Those of wide windows make those of their parts obsolete, so that a
kill between the two writes loses nothing. Only windows that change are in memory.

Rows of the constant evaluation batch are kept apart (`c-`): at each moment the rows with the smallest
hash of their place in the batch, so the same ones, and of two moments the earlier stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows
from asys_bench.change.reservoir.window_files import (
    WindowFile,
    file_name,
    rows_of,
    uncovered,
    window_files,
)
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import RESERVOIR_DIR
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, tensor_parts
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import make_folders, remove

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
FORETOLD_BY, FORETOLD_ERRORS = 8, 5.0
"""A window begins with the highest limit of so many before it, and so many standard errors of n."""
MARGIN = 0.9
"""Of the bytes: a window that is joined is there twice for a moment, and files have headers."""
FILE_BYTES = 16 << 20
"""Of windows that share a file: so much is written anew for a late row, and lost with a file."""
JOINED_BYTES = 1 << 20
"""Of windows that are joined at once: so much stays in a cache."""


def reservoir_folder(run_dir: Path, hook: str) -> Path:
    """Where the windows of a hook are."""
    return run_dir / RESERVOIR_DIR / file_slug(hook)


def rows_per_window(row_bytes: int, most_bytes: int) -> int:
    """n, for rows of that many bytes."""
    return max(1, min(MOST_ROWS, int(MARGIN * most_bytes) // (MOST_WINDOWS * row_bytes)))


@dataclass(eq=False)
class _Window:
    """rows: None where they are in the file alone. limit: rows with a rank below it are all there."""

    first: int
    rows: ReservoirRows | None
    limit: float = math.inf
    is_full: bool = False
    changed: bool = True
    file: _File | None = None
    waiting: list[ReservoirRows] = field(default_factory=list)
    """Rows that were not compared with the others yet."""


@dataclass(eq=False)
class _File:
    """windows: all that are in it, in order."""

    about: WindowFile
    windows: list[_Window]

    def load(self) -> None:
        """Give its windows their rows. Raises CheckpointError, ValueError: it is damaged."""
        rows = rows_of(self.about, 0)
        first_N = rows.host_step - rows.host_step % self.about.width
        if (first_N[1:] < first_N[:-1]).any():  # a file has its windows in order
            order_N = np.argsort(first_N, kind="stable")
            rows, first_N = rows[order_N], first_N[order_N]
        wanted_W = np.array([window.first for window in self.windows])
        begin_W = np.searchsorted(first_N, wanted_W).tolist()
        end_W = np.searchsorted(first_N, wanted_W, side="right").tolist()
        for window, begin, end in zip(self.windows, begin_W, end_W, strict=True):
            if window.rows is None:
                window.rows = rows[begin:end]


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
        self._kind = "c" if constant else "w"
        self._windows: dict[int, _Window] = {}
        self._obsolete: set[Path] = set()
        self._form: tuple[torch.dtype, int] | None = None
        self._foretold = math.inf
        """The limit with which windows begin that rows were asked about last."""
        if folder is not None:
            self._adopt(folder)

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
        """Rows of each of these host steps are kept if their rank is below. Those that are go to `extend`
        before this is asked again."""
        first_W, inverse_P = np.unique(step_P - step_P % self.width, return_inverse=True)
        windows = [self._windows.get(first) for first in first_W.tolist()]
        if None in windows:
            self._foretold = self._limit_of_next()
        limit_W = np.array([self._foretold if one is None else one.limit for one in windows])
        return np.asarray(limit_W[inverse_P.reshape(-1)])

    def _limit_of_next(self) -> float:
        last = [self._windows[first] for first in sorted(self._windows)[-FORETOLD_BY:]]
        if self._constant or not last or not all(one.is_full for one in last):
            return math.inf
        return (1 + FORETOLD_ERRORS / math.sqrt(self.rows_each)) * max(one.limit for one in last)

    def extend(self, rows: ReservoirRows) -> None:
        """Rows of any windows."""
        width = -1
        while (
            len(rows) and width != self.width
        ):  # a window that is added may make all of them wider
            width = self.width
            first_N = rows.host_step - rows.host_step % width
            if (first_N[1:] < first_N[:-1]).any():
                order_N = np.argsort(first_N, kind="stable")
                rows, first_N = rows[order_N], first_N[order_N]
            ends = [*(np.flatnonzero(first_N[1:] > first_N[:-1]) + 1).tolist(), len(rows)]
            for begin, end in zip([0, *ends], ends, strict=False):
                self.add(int(first_N[begin]), rows[begin:end])
                if self.width != width:
                    break

    def add(self, first: int, rows: ReservoirRows) -> None:
        """Rows of the window that begins at step `first`, all of them within it."""
        if not len(rows):
            return
        form = rows.values.dtype, rows.values.shape[1]
        if self._form is None:
            self._form = form
        if form != self._form:
            raise ValueError(f"rows are {form}, earlier ones {self._form}")
        window = self._windows.get(first)
        if window is None:
            window = self._windows[first] = _Window(first, None, self._foretold)
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
        window.is_full = len(rows) == self.rows_each
        if window.is_full:
            window.limit = min(window.limit, float(rows.rank.max()))

    def _join(self) -> None:
        """Windows of twice the width."""
        before, self.width = self._windows, 2 * self.width
        self._windows = {}
        some: list[_Window] = []
        """Joined windows whose parts wait in them."""
        for first in sorted(before):
            part, wide = before[first], self.first_of(first)
            if part.file is not None:
                self._obsolete.add(part.file.about.path)
            window = self._windows.get(wide)
            if window is None:
                if len(some) >= self._windows_of(JOINED_BYTES):
                    self._put_together(some)
                    some = []
                window = self._windows[wide] = _Window(wide, None)
                some.append(window)
            elif self._constant:
                continue
            window.waiting.append(self._read(part))
            part.rows = None  # its file's windows refer to it, and it to the file
            window.limit = min(window.limit, part.limit)
        self._put_together(some)

    def _put_together(self, windows: list[_Window]) -> None:
        """What waits in windows becomes their rows: those with the smallest ranks, up to the limit, beyond
        which one of the parts has not all rows. No row is in two parts: they are of other steps."""
        rows = ReservoirRows.joined([part for one in windows for part in one.waiting])
        end_W = np.cumsum([sum(map(len, one.waiting)) for one in windows])
        rank_N = np.ascontiguousarray(rows.rank)
        kept_N = np.ones(len(rank_N), bool)
        begin = 0
        for window, end in zip(windows, end_W.tolist(), strict=True):
            own = rank_N[begin:end]
            if len(own) >= self.rows_each:
                nth = self.rows_each - 1
                window.limit = min(window.limit, float(np.partition(own, nth)[nth]))
            if window.limit < math.inf:
                np.less_equal(own, window.limit, out=kept_N[begin:end])
            begin = end
        if not kept_N.all():
            rows = rows[np.flatnonzero(kept_N)]
        begin = 0
        for window, end in zip(windows, np.cumsum(kept_N)[end_W - 1].tolist(), strict=True):
            window.rows, window.waiting = rows[begin:end], []
            window.is_full = len(window.rows) >= self.rows_each
            begin = end

    def _read(self, window: _Window) -> ReservoirRows:
        if window.rows is None:
            assert window.file is not None
            window.file.load()
        assert window.rows is not None
        if window.waiting:
            rows, window.waiting = ReservoirRows.joined([window.rows, *window.waiting]), []
            self._put(window, rows)
        return window.rows

    # ---- files

    def flush(self, sync: bool = False) -> None:
        """Write what has changed; keep in memory only the newest window.

        Raises:
            OSError: the disk refuses; what could not be written is tried again the next time.
        """
        if self._folder is None:
            return
        self._change_together()
        for windows in self._of_a_file():
            self._write(self._folder, windows, sync)
        newest = self.newest
        for first, window in self._windows.items():
            if first != newest:
                window.rows = None
        used = {one.file.about.path for one in self._windows.values() if one.file is not None}
        for path in self._obsolete - used:
            remove(path, below=self._below or self._folder)
        self._obsolete &= used

    @property
    def unwritten_bytes(self) -> int:
        return sum(
            window.rows.values.nbytes + window.rows.about.nbytes
            for window in self._windows.values()
            if window.changed and window.rows is not None
        )

    def _change_together(self) -> None:
        """A file is written whole: all of its windows change with one, or with a new one among them."""
        changed = [one for one in self._windows.values() if one.changed]
        touched = [one.file for one in changed if one.file is not None]
        files = {one.file for one in self._windows.values() if one.file is not None}
        for new in (one.first for one in changed if one.file is None):
            touched += [f for f in files if f.windows[0].first < new < f.windows[-1].first]
        for file in touched:
            for window in file.windows:
                window.changed = True

    def _windows_of(self, nbytes: int) -> int:
        """Windows that take so much."""
        width = self._form[0].itemsize * self._form[1] if self._form is not None else 0
        return max(1, nbytes // (self.rows_each * (width + ABOUT.itemsize)))

    def _of_a_file(self) -> Iterator[list[_Window]]:
        """Changed windows that follow each other, while they fit into one file. The newest is alone: it will
        change again."""
        together: list[_Window] = []
        most, newest = self._windows_of(FILE_BYTES), self.newest
        for first in sorted(self._windows):
            window = self._windows[first]
            if together and (not window.changed or first == newest or len(together) >= most):
                yield together
                together = []
            if window.changed:
                together.append(window)
        if together:
            yield together

    def _write(self, folder: Path, windows: list[_Window], sync: bool) -> None:
        make_folders(folder, below=self._below or folder.parent)
        rows = ReservoirRows.joined([self._read(one) for one in windows])
        first, steps = windows[0].first, windows[-1].first - windows[0].first + self.width
        path = folder / file_name(self._kind, first, steps, self.width)
        replace_file(path, tensor_parts(rows.tensors()), sync=sync)
        file = _File(WindowFile(path, first, steps, self.width), windows)
        for window in windows:
            if window.file is not None:
                self._obsolete.add(window.file.about.path)
            window.file, window.changed = file, False

    def _adopt(self, folder: Path) -> None:
        """Go on with what an earlier worker has written."""
        found = window_files(folder, self._kind, self._below)
        self.width = max((one.width for one in found), default=1)
        self._obsolete = {one.path for one in found}
        for about, begin in uncovered(found):
            try:
                rows = rows_of(about, begin)
            except (CheckpointError, ValueError) as error:
                log.error("%s: left out of the reservoir: %s", about.path, error)
                self._obsolete.discard(about.path)
                continue
            if len(rows):
                self._form = rows.values.dtype, rows.values.shape[1]
                self._adopt_rows(rows, _File(about, []), begin)
        newest = self.newest
        for first, window in self._windows.items():
            if first != newest and not window.changed:
                window.rows = None

    def _adopt_rows(self, rows: ReservoirRows, file: _File, begin: int) -> None:
        first_N = rows.host_step - rows.host_step % self.width
        is_whole = file.about.width == self.width and begin == file.about.first
        for first in np.unique(first_N).tolist():
            own = rows[np.flatnonzero(first_N == first)]
            window = self._windows.get(first)
            if window is None:
                window = self._windows[first] = _Window(first, None)
            elif self._constant:
                continue
            else:
                is_whole = False
                own = ReservoirRows.joined([self._read(window), own])
            self._put(window, own)
            window.file = file
            file.windows.append(window)
        for window in file.windows:
            window.changed = not is_whole

    def rows(self) -> ReservoirRows | None:
        """All rows in the host's order; None without any."""
        parts = [self._read(self._windows[first]) for first in sorted(self._windows)]
        return ReservoirRows.joined(parts).of_time() if parts else None
