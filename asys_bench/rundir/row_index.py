"""Which rows of which shards a dataset has, and which rows of several hooks belong together.

Rows are numbered 0 .. n - 1 in the order written. The index holds them as runs: so many rows from this row
of that shard on, of every hook at once. A hook that one worker wrote without a restart is a run per shard,
known from the headers. Otherwise its key columns are read once: to leave out rows that are there twice, or
that a later attempt made again, and to join hooks.

Rows of two hooks belong together when they are the same row of tensors of one size in the same call: equal
attempt, source, shard, host step, weights version, microbatch, call index, grid and row. Where a tensor's
size is not recorded (`grid` is empty), both must have had the same number of rows, from the same first to the
same last one. A row belongs to the token of the text that its column `text` names, as `token_rows` has it.
Rows without a partner in each of the other hooks are left out.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.names import TOKENS
from asys_bench.contracts.packet import NO_TEXT
from asys_bench.rundir.archive_columns import TEXT_NOT_RECORDED, column_array
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.row_order import Rows
from asys_bench.sinks.archive import Archive, SeenRows, ShardGoneError, ShardRows, counts

_PACKET = ("attempt", "source", "shard", "seq")
_CALL = ("host_step", "weights_version", "microbatch", "call_index", "text")
_KEYS = (*_PACKET, *_CALL, "row", "grid")
_ROW_BITS = 32
_MOST_BYTES = 1 << 28
"""Of the runs in a saved state, unpacked."""


@dataclass(frozen=True)
class RowIndex:
    """shards: of each hook, names below the archive's folder. runs [n, 1 + 2 x hooks]: rows, then the shard
    and its first row for each hook. left_out: rows of the first hook that have no partner. batch_rows: rows
    of a record batch, on average."""

    hooks: tuple[str, ...]
    shards: tuple[tuple[str, ...], ...]
    runs: Rows
    left_out: int = 0
    batch_rows: int = 1

    @cached_property
    def _starts(self) -> Rows:
        return np.concatenate([[0], np.cumsum(self.runs[:, 0])]).astype(np.int64)

    @property
    def rows(self) -> int:
        return int(self._starts[-1])

    def places(self, rows_N: Rows, hook: int) -> tuple[Rows, Rows]:
        """(shard, row of the shard) of each of the rows, of the hook at this place in `hooks`."""
        run_N = np.searchsorted(self._starts, rows_N, side="right") - 1
        shard_N, first_N = self.runs[run_N, 1 + 2 * hook], self.runs[run_N, 2 + 2 * hook]
        return shard_N, first_N + (rows_N - self._starts[run_N])

    def to_dict(self) -> dict[str, Any]:
        """For a saved state, as JSON takes it: a few bytes for each run."""
        changes = np.diff(self.runs, axis=0, prepend=0).astype("<i8")
        packed = zlib.compress(changes.T.tobytes(), 6)
        return {
            "hooks": list(self.hooks),
            "shards": [list(names) for names in self.shards],
            "runs": base64.b64encode(packed).decode(),
            "left_out": self.left_out,
            "batch_rows": self.batch_rows,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> RowIndex:
        """Raises ValueError, LookupError, TypeError: it is not what `to_dict` gave."""
        hooks = tuple(map(str, saved["hooks"]))
        shards = tuple(tuple(map(str, names)) for names in saved["shards"])
        unpack = zlib.decompressobj()
        raw = unpack.decompress(base64.b64decode(saved["runs"], validate=True), _MOST_BYTES)
        if not unpack.eof:
            raise ValueError("its runs do not end")
        columns = 1 + 2 * len(hooks)
        changes = np.frombuffer(raw, dtype="<i8").reshape(columns, -1).T
        runs = np.cumsum(changes, axis=0, dtype=np.int64)
        if len(shards) != len(hooks) or (runs < 0).any() or (runs[:, 0] < 1).any():
            raise ValueError("its runs are not those of a dataset")
        for hook, names in enumerate(shards):
            if (runs[:, 1 + 2 * hook] >= len(names)).any():
                raise ValueError("its runs name shards that it does not have")
        return cls(hooks, shards, runs, int(saved["left_out"]), max(1, int(saved["batch_rows"])))


def index_rows(
    archive: Archive, hooks: Sequence[str], shards: Sequence[str] | None = None
) -> RowIndex:
    """The rows of the first hook, of many joined with those of the others.

    shards: names of the first hook's shards that are read; None: all of them.

    Raises:
        KeyError: no such hook; ReadingError: no such shard, or no rows belong together; ArchiveError: a
        shard is damaged.
    """
    names = {hook: [archive.name_of(path) for path in archive.shards(hook)] for hook in hooks}
    if len(names) < len(hooks):
        raise ReadingError(f"a hook is named twice in {list(hooks)}")
    if hooks[0] == TOKENS and len(hooks) > 1:
        raise ReadingError(
            f"{TOKENS!r} cannot be the first hook: rows of a hook are given their tokens"
        )
    if TOKENS in hooks[1:] and (each := archive.rows_each(hooks[0])) > 1:
        raise ReadingError(
            f"rows of {hooks[0]!r} are heads, {each} for each token, which {TOKENS!r} is not joined with "
            "here: capture one head (preprocess heads, keep), or use token_rows"
        )
    wanted = None if shards is None else set(shards)
    if wanted is not None and (unknown := wanted.difference(names[hooks[0]])):
        raise ReadingError(
            f"{hooks[0]!r} has no shards {sorted(unknown)}; it has {names[hooks[0]]}"
        )
    if len(hooks) == 1 and archive.each_once(hooks[0]):
        return _from_headers(archive, hooks[0], names[hooks[0]], wanted)
    scans = [_Scan(archive, hook) for hook in hooks]
    first, others = scans[0], scans[1:]
    if wanted is not None:
        first.keep_shards([name in wanted for name in names[hooks[0]]])
    if others:
        runs = _joined(first, others)
        if first.rows and not len(runs):
            raise ReadingError(
                f"no rows of {list(hooks)} are of one call: they were not captured with one coin, or are "
                "not of one input"
            )
    else:
        runs = np.stack([first.rows_R, first.shard_R, first.first_R], axis=1)
    runs = _merged(runs)
    left_out = int(first.rows_R.sum() - runs[:, 0].sum())
    every = tuple(tuple(names[hook]) for hook in hooks)
    return RowIndex(tuple(hooks), every, runs, left_out, first.batch_rows)


def _from_headers(
    archive: Archive, hook: str, names: Sequence[str], wanted: set[str] | None
) -> RowIndex:
    runs, batches = [], 0
    for index, (name, path) in enumerate(zip(names, archive.shards(hook), strict=True)):
        if wanted is not None and name not in wanted:
            continue
        try:
            rows, its_batches = counts(path)
        except ShardGoneError:
            archive.skip(path)
            continue
        batches += its_batches
        if rows:
            runs.append((rows, index, 0))
    found = np.array(runs, dtype=np.int64).reshape(-1, 3)
    return RowIndex((hook,), (tuple(names),), found, 0, _mean(int(found[:, 0].sum()), batches))


def _mean(rows: int, batches: int) -> int:
    return max(1, rows // max(1, batches))


class _Scan:
    """The wanted rows of a hook as runs of one packet each, with rows of its tensor in ascending order.

    Of each run: rows_R, its shard and first row there, row_R of the tensor, and what says of which call.
    """

    def __init__(self, archive: Archive, hook: str) -> None:
        self.hook = hook
        self._grids: dict[str, int] = {}
        self.shard_rows: list[int] = []
        parts, batches, seen = [], 0, SeenRows()
        for index, path in enumerate(archive.shards(hook)):
            self.shard_rows.append(0)
            try:
                shard, first = ShardRows(path), 0
                self.shard_rows[index] = shard.rows
                for batch in shard.keys(_KEYS):
                    wanted_N = archive.wanted(batch, seen)
                    parts.append(self._runs(batch, wanted_N, index, first))
                    first += batch.num_rows
            except ShardGoneError:
                archive.skip(path)
                continue
            batches += shard.batches
        columns = 4 + len(_PACKET) + len(_CALL) + 1
        runs = np.concatenate(parts) if parts else np.empty((0, columns), dtype=np.int64)
        self._take(runs)
        self.batch_rows = _mean(sum(self.shard_rows), batches)
        self.grids = {number: grid for grid, number in self._grids.items()}

    @property
    def rows(self) -> int:
        return int(self.rows_R.sum())

    def _take(self, runs: Rows) -> None:
        self.rows_R, self.shard_R, self.first_R, self.row_R = runs[:, :4].T
        self.packet_RK = runs[:, 4 : 4 + len(_PACKET)]
        self.call_RK, self.grid_R = runs[:, 4 + len(_PACKET) : -1], runs[:, -1]
        self._all = runs

    def keep_shards(self, kept: Sequence[bool]) -> None:
        """Leave out the runs of the other shards."""
        self._take(self._all[np.array(kept, dtype=bool)[self.shard_R]])

    def _runs(
        self, batch: Any, wanted_N: npt.NDArray[np.bool_], shard: int, first: int
    ) -> npt.NDArray[np.int64]:
        keys_NK = np.stack(
            [column_array(batch, name).astype(np.int64) for name in (*_PACKET, *_CALL)], axis=1
        )
        row_N = column_array(batch, "row").astype(np.int64)
        broken_N = np.ones(len(row_N), dtype=bool)
        broken_N[1:] = (
            (keys_NK[1:] != keys_NK[:-1]).any(axis=1)
            | (row_N[1:] != row_N[:-1] + 1)
            | (wanted_N[1:] != wanted_N[:-1])
        )
        begin_R = np.flatnonzero(broken_N)
        rows_R = np.diff(begin_R, append=len(row_N))
        grid_R = column_array(batch, "grid")[begin_R]
        numbers = [self._grids.setdefault(str(grid), len(self._grids)) for grid in grid_R]
        runs = np.column_stack(
            [rows_R, np.full(len(begin_R), shard), first + begin_R, row_N[begin_R],
             keys_NK[begin_R], numbers]
        )  # fmt: skip
        return runs[wanted_N[begin_R]].astype(np.int64)

    def of_call(self) -> Rows:
        """What rows of other hooks must agree in, [runs, k]; a grid that is not recorded is the packet's
        number of rows, its first and its last one."""
        _, packet_R = np.unique(self.packet_RK, axis=0, return_inverse=True)
        packet_R = packet_R.reshape(-1)
        count, first = np.zeros(len(packet_R), dtype=np.int64), np.full(len(packet_R), 1 << 40)
        last = np.zeros(len(packet_R), dtype=np.int64)
        np.add.at(count, packet_R, self.rows_R)
        np.minimum.at(first, packet_R, self.row_R)
        np.maximum.at(last, packet_R, self.row_R + self.rows_R)
        known_R = self.grid_R != self._grids.get("", -1)
        size_R3 = np.stack([count, first, last], axis=1)[packet_R]
        size_R3[known_R] = -1
        return np.column_stack([self.packet_RK[:, :3], self.call_RK[:, :-1], size_R3])

    def of_text(self) -> Rows:
        """Attempt, source, host step, microbatch and text."""
        return np.column_stack([self.packet_RK[:, :2], self.call_RK[:, [0, 2, 4]]])


def _joined(first: _Scan, others: Sequence[_Scan]) -> Rows:
    """Runs of rows that all hooks have, in the order of the first hook's."""
    before = np.concatenate([[0], np.cumsum(first.shard_rows)]).astype(np.int64)
    line_R = before[first.shard_R] + first.first_R
    found = np.column_stack([line_R, first.rows_R, first.shard_R, first.first_R])
    for other in others:
        moves = range(1, found.shape[1] - 2, 2)
        found = _overlap(found, _partners(first, line_R, other), moves, (1,))
    return found[:, 1:]


def _partners(first: _Scan, line_R: Rows, other: _Scan) -> Rows:
    """Runs [at `line_R`, rows, the other's shard, its first row], for the first hook's rows that have one."""
    if other.hook == TOKENS:
        texts = first.call_RK[:, -1]
        if (texts == TEXT_NOT_RECORDED).any():
            raise ReadingError(
                f"the archive does not say which rows of {first.hook!r} are tokens: it was written by an "
                "earlier version"
            )
        mine, theirs = first.of_text(), other.of_text()
        usable_R = texts != NO_TEXT
    else:
        mine, theirs = _with_grids(first, other)
        usable_R = np.ones(len(line_R), dtype=bool)
    _, numbers = np.unique(np.concatenate([mine, theirs]), axis=0, return_inverse=True)
    numbers = numbers.reshape(-1).astype(np.int64)
    mine_at = (numbers[: len(mine)] << _ROW_BITS) + first.row_R
    their_at = (numbers[len(mine) :] << _ROW_BITS) + other.row_R
    a = np.column_stack([mine_at, first.rows_R, line_R])[usable_R]
    b = np.column_stack([their_at, other.rows_R, other.shard_R, other.first_R])
    found = _overlap(_apart(a), _apart(b), (0,), (1,))  # key, rows, line, shard, first
    return found[np.argsort(found[:, 2], kind="stable")][:, [2, 1, 3, 4]]


def _with_grids(first: _Scan, other: _Scan) -> tuple[Rows, Rows]:
    """`of_call` of both, with the grids under common numbers."""
    common: dict[str, int] = {}
    parts = []
    for scan in (first, other):
        numbers = {n: common.setdefault(grid, len(common)) for n, grid in scan.grids.items()}
        table = np.array([numbers[n] for n in range(len(numbers))] or [0], dtype=np.int64)
        parts.append(np.column_stack([scan.of_call(), table[scan.grid_R]]))
    return parts[0], parts[1]


def _apart(runs: Rows) -> Rows:
    """The runs by their first column, without those that begin inside an earlier one (a call that was
    captured twice)."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 0] + runs[:, 1])
    fine = np.ones(len(runs), dtype=bool)
    fine[1:] = runs[1:, 0] >= ends[:-1]
    return runs[fine]


def _overlap(a: Rows, b: Rows, a_moves: Sequence[int], b_moves: Sequence[int]) -> Rows:
    """Where runs of `a` and of `b` overlap: [first, rows, what follows in a, what follows in b].

    A run is [first, rows, ...]; each table is sorted and without overlaps of its own. a_moves, b_moves: which
    of the columns that follow are numbers of a run's first row elsewhere, and go up where its beginning is
    cut off.
    """
    a_stop, b_stop = a[:, 0] + a[:, 1], b[:, 0] + b[:, 1]
    low = np.searchsorted(b_stop, a[:, 0], side="right")
    count = np.maximum(np.searchsorted(b[:, 0], a_stop, side="left") - low, 0)
    of_a = np.repeat(np.arange(len(a)), count)
    of_b = np.repeat(low - (np.cumsum(count) - count), count) + np.arange(len(of_a))
    first = np.maximum(a[of_a, 0], b[of_b, 0])
    rows = np.minimum(a_stop[of_a], b_stop[of_b]) - first
    parts = []
    for table, chosen, moves in ((a, of_a, a_moves), (b, of_b, b_moves)):
        part = table[chosen, 2:]
        part[:, list(moves)] += (first - table[chosen, 0])[:, None]
        parts.append(part)
    return np.column_stack([first, rows, *parts]).astype(np.int64)


def _merged(runs: Rows) -> Rows:
    """Runs that go on in the next one, in each hook, as one."""
    if not len(runs):
        return runs
    shards, firsts = runs[:, 1::2], runs[:, 2::2]
    goes_on = (shards[1:] == shards[:-1]) & (firsts[1:] == firsts[:-1] + runs[:-1, :1])
    begin = np.concatenate([[0], np.flatnonzero(~goes_on.all(axis=1)) + 1])
    merged: Rows = runs[begin]
    merged[:, 0] = np.add.reduceat(runs[:, 0], begin)
    return merged
