"""The files of a hook's index, as `rundir.feature_index` reads them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from asys_bench.change.feature_index.index import Index
from asys_bench.contracts.run_files import FEATURE_INDEX_SCHEMA
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.feature_index_layout import (
    AFTER,
    BEFORE,
    DOCUMENT,
    LATEST,
    LATEST_FILE,
    TOKENS_AROUND,
    Sizes,
    file_parts,
    index_folder,
)
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files.atomic import replace_file
from asys_bench.system.files.below import (
    is_file,
    make_folders,
    read_json,
    remove,
    rename,
    scan_if_there,
)

log = logging.getLogger(__name__)
_COLUMNS = re.compile(r"columns-(\d{1,18})\.safetensors")
_BEFORE = re.compile(r"before-(\d{1,18})\.json")


@dataclass
class Adopted:
    """An index that an earlier worker has written. sae: as its document names it."""

    index: Index
    sae: str


class IndexFiles:
    """Writes and takes up the index of one hook."""

    def __init__(self, run_dir: Path, hook: str, *, sync: bool) -> None:
        self._run_dir, self._hook, self._sync = run_dir, hook, sync
        self._folder = index_folder(run_dir, hook)
        names = [entry.path.name for entry in scan_if_there(self._folder, below=run_dir)]
        found = [_COLUMNS.fullmatch(name) or _BEFORE.fullmatch(name) for name in names]
        self._number = max((int(match[1]) for match in found if match), default=0)

    def write(self, index: Index, about: Mapping[str, Any]) -> None:
        """Replace the index; `about` is what its document says besides.

        Raises:
            OSError: the disk refuses; the files are as they were.
        """
        index.settle()
        make_folders(self._folder, below=self._run_dir)
        name = f"columns-{self._number + 1}.safetensors"
        parts = file_parts(index.columns)
        checksum = 0
        for part in parts:
            checksum = crc32c(part, checksum)
        sizes = index.sizes
        document = {
            "schema": FEATURE_INDEX_SCHEMA,
            "hook": self._hook,
            "columns": name,
            "bytes": sum(memoryview(part).nbytes for part in parts),
            "crc32c": checksum,
            "d_sae": sizes.d_sae,
            "examples_per_bin": sizes.per_bin,
            "text": sizes.text,
            "tokens_before": BEFORE,
            "tokens_after": AFTER,
            "rows": index.rows,
            "host_step": index.host_step,
            "windows": {"first": index.first, "width": index.width, "used": index.used},
            **about,
        }
        replace_file(self._folder / name, parts, sync=self._sync)
        self._number += 1
        raw = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
        replace_file(self._folder / DOCUMENT, raw, sync=self._sync)
        self._clean()

    def write_latest(self, index: Index) -> None:
        """Replace the file that says when each feature fired last. Raises OSError."""
        make_folders(self._folder, below=self._run_dir)
        parts = file_parts({name: index.columns[name] for name in LATEST})
        replace_file(self._folder / LATEST_FILE, parts, sync=False)

    def end(self) -> None:
        """The index says it from now on: it is not written any more. Raises OSError."""
        if is_file(self._folder / LATEST_FILE, below=self._run_dir):
            remove(self._folder / LATEST_FILE, below=self._run_dir)

    def _clean(self) -> None:
        """Columns that no document names."""
        kept = {f"columns-{self._number}.safetensors"}
        entries = scan_if_there(self._folder, below=self._run_dir)
        for path, _ in entries:
            if match := _BEFORE.fullmatch(path.name):
                kept.add(f"columns-{match[1]}.safetensors")
        for path, _ in entries:
            if _COLUMNS.fullmatch(path.name) and path.name not in kept:
                remove(path, below=self._run_dir)

    def adopt(self, d_sae: int, most_bytes: int) -> Adopted | None:
        """What an earlier worker has written, if it is of so many features. What is of others, larger than
        `most_bytes` or damaged is set aside, and why is said.

        Raises:
            OSError: it cannot be set aside.
        """
        path = self._folder / DOCUMENT
        if not is_file(path, below=self._run_dir):
            return None
        try:
            found = FeatureIndex.of_file(path, self._run_dir)
            sizes = found.sizes
            if sizes.d_sae != d_sae:
                raise ReadingError(f"it has {sizes.d_sae} features, and the SAE now {d_sae}")
            if sizes.nbytes > most_bytes:
                raise ReadingError(f"it takes {sizes.nbytes >> 20} MiB, more than max_mib allows")
            return Adopted(_taken_up(found, sizes), found.sae)
        except ReadingError as error:
            log.warning("%s: the index begins anew: %s", self._hook, str(error))
            self.set_aside()
            return None

    def set_aside(self) -> None:
        """Keep the index as `before-<n>.json`, with the columns that it names; the next one begins anew.

        Raises:
            OSError: it cannot be renamed.
        """
        path = self._folder / DOCUMENT
        if not is_file(path, below=self._run_dir):
            return
        number = self._number
        with suppress(OSError, ValueError, TypeError, KeyError):
            if match := _COLUMNS.fullmatch(read_json(path, below=self._run_dir)["columns"]):
                number = int(match[1])
        kept = rename(path, f"before-{number}.json", below=self._run_dir)
        log.warning("%s: what was found until now is kept in %s", self._hook, kept.name)


def _taken_up(found: FeatureIndex, sizes: Sizes) -> Index:
    """Raises ReadingError: what no index has."""
    columns = {name: found.column(name) for name in sizes.columns()}
    for name, column in columns.items():
        if column.dtype.kind == "f" and (np.isnan(column).any() or (column == np.inf).any()):
            raise ReadingError(f"column {name!r} is not finite")
    partner = columns["partner"]
    if partner.min() < -1 or partner.max() >= sizes.d_sae:
        raise ReadingError("partners are no features of it")
    if sizes.text and (
        columns["length"].max() > TOKENS_AROUND or columns["at"].max() >= TOKENS_AROUND
    ):
        raise ReadingError("an example's tokens are more than there are")
    index = Index(sizes, columns)
    index.rows, index.host_step = found.rows, found.host_step
    index.first, index.width, index.used = found.windows
    return index
