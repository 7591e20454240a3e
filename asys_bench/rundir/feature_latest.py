"""When each feature fired last, as a `feature_index` sink at work tells it twice a second.

    feature_index/<hook>/.latest      a safetensors file with the columns `latest_*` of the index

The index itself is large and is written less often. Whoever looks on asks here; where the file is gone, the
index has the same columns as of its last writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.feature_index_layout import (
    LATEST,
    LATEST_FILE,
    ColumnFile,
    index_folder,
)
from asys_bench.rundir.live_run import ReadingError


@dataclass(frozen=True, slots=True)
class Firing:
    """A feature's last one. token: its id, -1 where the row is of no token."""

    host_step: int
    activation: float
    token: int


def latest_firing(run_dir: Path, index: FeatureIndex, feature: int) -> Firing | None:
    """Of a feature of the run's `index`. None: it never fired since the sink began.

    Raises:
        IndexError: no such feature. ReadingError: the file was damaged.
    """
    if not 0 <= feature < index.d_sae:
        raise IndexError(f"feature {feature}; there are {index.d_sae}")
    told = _read(run_dir, index, feature)
    if told is None:
        told = {name: index.column(name)[feature] for name in LATEST}
    step = int(told["latest_step"])
    if step < 0:
        return None
    return Firing(step, float(told["latest_activation"]), int(told["latest_token"]))


def _read(run_dir: Path, index: FeatureIndex, feature: int) -> dict[str, Any] | None:
    """One entry of each column; None: there is no such file."""
    path = index_folder(run_dir, index.hook) / LATEST_FILE
    of_file = {n: (np.dtype(dtype), (index.d_sae,)) for n, (dtype, _) in LATEST.items()}
    try:
        file = ColumnFile(path, of_file, run_dir)
        return {name: file.of_features(name, feature, 1)[0] for name in LATEST}
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ReadingError(f"{path} {error}") from error
