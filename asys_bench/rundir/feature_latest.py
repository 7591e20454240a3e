"""When each feature fired last, as a `feature_index` sink at work tells it twice a second.

    feature_index/<hook>/.latest      a safetensors file with the columns `latest_*` of the index

The index itself is large and is written less often. Whoever looks on asks here; where the file is gone, the
index has the same columns as of its last writing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.feature_index_layout import (
    LATEST,
    LATEST_FILE,
    ColumnFile,
    Columns,
    index_folder,
)
from asys_bench.rundir.live_run import ReadingError


@dataclass(frozen=True, slots=True)
class Firing:
    """A feature's last one. token: its id, -1 where the row is of no token."""

    host_step: int
    activation: float
    token: int


class LatestFirings:
    """Of one hook; read anew when the file was replaced."""

    def __init__(self, run_dir: Path, hook: str) -> None:
        self._run_dir, self._hook = run_dir, hook
        self._path = index_folder(run_dir, hook) / LATEST_FILE
        self._known: tuple[int, int] = (0, 0)
        self._columns: Columns | None = None

    def of(self, index: FeatureIndex, feature: int) -> Firing | None:
        """None: it never fired since the sink began.

        Raises:
            IndexError: no such feature. ReadingError: the file was damaged.
        """
        if not 0 <= feature < index.d_sae:
            raise IndexError(f"feature {feature}; there are {index.d_sae}")
        columns = self._read(index.d_sae)
        told = columns if columns is not None else {name: index.column(name) for name in LATEST}
        step = int(told["latest_step"][feature])
        if step < 0:
            return None
        value = float(told["latest_activation"][feature])
        return Firing(step, value, int(told["latest_token"][feature]))

    def _read(self, features: int) -> Columns | None:
        try:
            status = os.lstat(self._path)
            if (status.st_ino, status.st_mtime_ns) != self._known:
                of_file = {n: (np.dtype(dtype), (features,)) for n, (dtype, _) in LATEST.items()}
                file = ColumnFile(self._path, of_file, self._run_dir)
                self._columns = {name: file.column(name) for name in LATEST}
                self._known = status.st_ino, status.st_mtime_ns
        except FileNotFoundError:
            self._columns, self._known = None, (0, 0)
        except (OSError, ValueError) as error:
            raise ReadingError(f"{self._path} {error}") from error
        return self._columns
