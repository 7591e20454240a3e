"""A run's whole archive: its hooks, their shards in the order written, duplicates removed.

archive = open_archive("runs/2026-01-01-cartpole")
for batch in archive.batches("policy.mlp"):
    ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from asys_bench.contracts.run_files import ARCHIVE_DIR, SHARD_SUFFIX, attempts_in, first_steps_after
from asys_bench.sinks.archive.deletions import Deleted, Deletion, read_deletions
from asys_bench.sinks.archive.encoded import is_encoded
from asys_bench.sinks.archive.layout import KEY_COLUMNS, ShardName
from asys_bench.sinks.archive.read import (
    ShardReport,
    open_shard,
    read_schema,
    read_shard,
    schema_hook,
    schema_run,
)
from asys_bench.sinks.archive.repair import repair_shard
from asys_bench.sinks.archive.sidecar import ArchiveError, ShardGoneError, sidecar_of_stored
from asys_bench.sinks.decoding import rows_each
from asys_bench.store.mirror import remount
from asys_bench.system.files.below import EntryKind, scan

_PAGE = 1 << 12


class SeenRows:
    """Which rows of which packets were seen, so that a redelivered packet is read (or written) once;
    in one record batch all rows are of one attempt.

    A packet's rows are archived in order, so one number per packet suffices: the rows seen so far (4
    bytes). The numbers lie in small pages per (run, source, shard): sequence numbers are dense there.
    """

    def __init__(self) -> None:
        self._pages: dict[tuple[str, int, int, int, int], Any] = {}

    def fresh(self, batch: Any) -> Any:
        """Mark the rows of one record batch as seen.

        Returns a boolean array: True where the row was not seen in an earlier call.
        """
        run_id, attempt = schema_run(batch.schema), attempt_of(batch)
        source, shard, seq, row = (batch.column(name).to_numpy() for name in KEY_COLUMNS)
        result = np.zeros(len(seq), dtype=bool)
        page_of = seq // _PAGE
        where = np.stack([source.astype(np.uint64), shard.astype(np.uint64), page_of], axis=1)
        keys, inverse = np.unique(where, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        for index, (its_source, its_shard, its_page) in enumerate(keys.tolist()):
            mine = inverse == index
            key = (run_id, attempt, its_source, its_shard, its_page)
            page = self._pages.get(key)
            if page is None:
                page = self._pages[key] = np.zeros(_PAGE, dtype=np.uint64)
            place = (seq[mine] % _PAGE).astype(np.int64)
            result[mine] = row[mine] >= page[place]
            np.maximum.at(page, place, row[mine].astype(np.uint64) + np.uint64(1))
        return result


def attempt_of(batch: Any) -> int:
    """Which attempt the rows of a record batch are of; 0 in an archive that does not say."""
    if not batch.num_rows or "attempt" not in batch.schema.names:
        return 0
    return int(batch.column("attempt")[0].as_py())


__all__ = ["Archive", "ShardReport", "open_archive", "read_shard", "repair_shard", "shard_paths"]


Repeats = Literal["all", "last"]
"""Of a step that the host made again in a later attempt: every attempt's rows, or the last one's."""


class Archive:
    """The shards of one run by hook, as they were when it was opened.

    A run that goes on with a budget (`max_gib`, ...) deletes its oldest shards: what is gone when its turn
    comes is left out and counted (`gone`).
    """

    def __init__(
        self,
        run_dir: Path,
        shards: dict[str, list[Path]],
        deletions: Mapping[str, Deletion] | None = None,
        superseded: Mapping[int, int] | None = None,
        first_packets: Mapping[int, int] | None = None,
        encoded: Collection[str] = (),
    ) -> None:
        """superseded: attempt -> step from which on its rows are left out. first_packets: attempt ->
        what is added to its packets' seq for numbers that go on. encoded: hooks of which some shards hold
        packets, not rows."""
        self.run_dir, self._shards = run_dir, shards
        self._superseded = dict(superseded or {})
        self.first_packets = dict(first_packets or {})
        self._deletions = dict(deletions or {})
        self._gone: set[Path] = set()
        self._encoded = frozenset(encoded)

    def is_encoded(self, hook: str) -> bool:
        """Some of its shards hold packets, which are decoded when they are read."""
        return hook in self._encoded

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker of a DataLoader: a copy's files come there too."""
        self.__dict__.update(state)
        remount(self.run_dir)

    @property
    def gone(self) -> int:
        """Shards that were deleted since this archive was opened, as far as a reader met them."""
        return len(self._gone)

    def skip(self, path: Path) -> None:
        """Count a shard that was deleted meanwhile, once."""
        self._gone.add(path)

    def deleted(self, hook: str | None = None) -> Deleted:
        """What had been deleted when it was opened: rows that were archived and are not there."""
        return Deleted.of(self._deletions_of(hook))

    def deleted_by_reason(self, hook: str | None = None) -> dict[str, Deleted]:
        """Reason (`deletions.Reason`) -> what had been deleted for it."""
        return Deleted.by_reason(self._deletions_of(hook))

    def _deletions_of(self, hook: str | None) -> list[Deletion]:
        return [one for one in self._deletions.values() if hook in (None, one.hook)]

    @property
    def hooks(self) -> list[str]:
        return sorted(self._shards)

    def shards(self, hook: str) -> list[Path]:
        """The shards of `hook`, by worker and in the order each wrote them.

        Raises:
            KeyError: the archive has no such hook; lists those it has.
        """
        try:
            return list(self._shards[hook])
        except KeyError:
            gone = self.deleted(hook).rows
            why = f"all {gone} rows of hook {hook!r} were deleted" if gone else f"no hook {hook!r}"
            raise KeyError(f"{why}; the archive has {self.hooks}") from None

    def name_of(self, path: Path) -> str:
        """A shard's name below the archive's folder, `<hook's folder>/<shard>`."""
        return path.relative_to(self.run_dir / ARCHIVE_DIR).as_posix()

    def path_of(self, name: str) -> Path:
        """The shard with this name, whether it is still there or not.

        Raises:
            ValueError: it is not the name of a shard.
        """
        folder, _, file = name.partition("/")
        if folder in ("", ".", "..") or "/" in file or ShardName.parse(file) is None:
            raise ValueError(f"{name!r} is not the name of a shard")
        return self.run_dir / ARCHIVE_DIR / folder / file

    def batches(self, hook: str) -> Iterator[Any]:
        """Record batches of `hook`, each row once by (run, attempt, source, shard, hook, seq, row).

        Schemas differ between shards where the hook's width or dtype changed. Rows of a torn batch
        are not there; nothing is repaired.

        Raises:
            ArchiveError: a shard is damaged (`repair_shard` keeps what is good).
        """
        seen = SeenRows()
        for path in self.shards(hook):
            for batch in self._batches_of(path):
                wanted_N = self.wanted(batch, seen)
                if wanted_N.any():
                    yield rows_of(batch, wanted_N)

    def wanted(self, batch: Any, seen: SeenRows | None = None) -> npt.NDArray[np.bool_]:
        """Which rows of a record batch are rows of the archive: those that `seen` has not seen and no later
        attempt made again, where such are left out. seen: None, and redelivered rows are as good."""
        fresh_N: npt.NDArray[np.bool_] = (
            np.ones(batch.num_rows, dtype=bool) if seen is None else seen.fresh(batch)
        )
        step = self._superseded.get(attempt_of(batch))
        return fresh_N if step is None else fresh_N & (batch.column("host_step").to_numpy() < step)

    def each_once(self, hook: str) -> bool:
        """Whether names of shards alone say that every row of `hook` is there once and wanted: each attempt
        had one worker, which was never started again.

        Raises:
            KeyError: as `shards`.
        """
        writers: dict[int, set[tuple[str, int]]] = {}
        for path in self.shards(hook):
            name = ShardName.parse(path.name)
            if name is None or name.attempt in self._superseded:
                return False
            writers.setdefault(name.attempt, set()).add((name.worker, name.incarnation))
        return all(len(each) == 1 for each in writers.values())

    def rows_each(self, hook: str) -> int:
        """Rows that each row of a captured tensor has become (heads); of the first archived one. Raises as
        `batches`."""
        for batch in self.batches(hook):
            if batch.num_rows:
                return rows_each(str(batch.column("encoding")[0].as_py()))
        return 1

    def _batches_of(self, path: Path) -> Iterator[Any]:
        try:
            yield from read_shard(path)[0]
        except ShardGoneError:
            self.skip(path)


def rows_of(batch: Any, wanted_N: npt.NDArray[np.bool_]) -> Any:
    """These rows of a record batch; the batch itself where they are all."""
    return batch if wanted_N.all() else batch.filter(pa.array(wanted_N))


def open_archive(run_dir: Path | str, repeats: Repeats = "all") -> Archive:
    """The archive of a run; `run_dir` is the run's folder.

    repeats: see `Repeats`.

    Raises:
        ArchiveError: there is none, or a shard's schema is damaged.
    """
    shards: dict[str, list[Path]] = {}
    encoded: set[str] = set()
    paths = shard_paths(run_dir)
    deletions = read_deletions(run_dir)
    for path in paths:
        if path.relative_to(Path(run_dir) / ARCHIVE_DIR).as_posix() in deletions:
            continue  # its worker was killed between the record and the deletion
        try:
            hook, packets = _kind_of(path)
        except ShardGoneError:
            continue
        shards.setdefault(hook, []).append(path)
        if packets:
            encoded.add(hook)
    root = Path(run_dir)
    attempts = attempts_in(root)
    superseded = first_steps_after(attempts) if repeats == "last" else {}
    firsts = {one["attempt"]: one.get("first_packet") or 0 for one in attempts}
    return Archive(root, shards, deletions, superseded, firsts, encoded)


def _kind_of(path: Path) -> tuple[str, bool]:
    """The hook of a shard and whether it holds packets; of one that a store has, the hook that its sidecar
    names, so that it need not be fetched.

    Raises:
        ArchiveError: see `open_archive`.
    """
    if (sidecar := sidecar_of_stored(path)) is not None:
        return sidecar.hook, sidecar.encoded
    with open_shard(path) as (fd, frames):
        if not frames.schema_end:
            raise ArchiveError(path, 0, frames.damage or "torn before its schema ends")
        schema = read_schema(fd, path, frames)
        return schema_hook(schema), is_encoded(schema)


def shard_paths(run_dir: Path | str) -> list[Path]:
    """Every shard of a run: hook by hook, then by worker, incarnation and number.

    Raises:
        ArchiveError: the run has no archive folder, or one that is a link.
    """
    root = Path(run_dir)
    folder = root / ARCHIVE_DIR
    try:
        hooks = [path for path, kind in scan(folder, below=root) if kind is EntryKind.FOLDER]
        inside = [entry.path for hook in hooks for entry in scan(hook, below=root)]
    except FileNotFoundError:
        raise ArchiveError(folder, None, "no such folder; did the run have an archiver?") from None
    except OSError as error:
        raise ArchiveError(folder, None, f"cannot be listed: {error}") from error

    def order(path: Path) -> tuple[str, str, int, int, int, str]:
        name = ShardName.parse(path.name)
        return (path.parent.name, *(name.sort_key() if name else ("", 0, 0, 0)), path.name)

    shards = [
        path for path in inside if path.suffix == SHARD_SUFFIX and not path.name.startswith(".")
    ]
    return sorted(shards, key=order)
