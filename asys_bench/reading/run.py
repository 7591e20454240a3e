"""`open_run(path)`: everything a run has written, while it goes on or long after."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from asys_bench.contracts.names import file_slug
from asys_bench.pipeline.live_run import RUN_FILE, LiveRunError, goes_on, read_run_file
from asys_bench.reading.archive_view import ArchiveView
from asys_bench.reading.error import ReadingError
from asys_bench.reading.metrics_table import Table, read_metrics
from asys_bench.reading.token_rows import Vocabulary
from asys_bench.sae import CheckpointStore, SparseAutoencoder, load_sae


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run in the folder `path`; of a folder of runs, the newest.

    Raises:
        ReadingError: there is no run.
    """
    folder = Path(path)
    if not (folder / RUN_FILE).is_file():
        found = [file for file in folder.glob(f"*/{RUN_FILE}") if not file.parent.is_symlink()]
        if not found:
            raise ReadingError(f"{folder}: neither a run ({RUN_FILE}) nor a folder of runs")
        folder = max(found, key=lambda file: (_started_ns(file), file.parent.name)).parent
    return Run(folder)


class Run:
    """A run's folder. Nothing is read before it is asked for, and nothing is ever written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<run {self.path}, {'going on' if self.live else 'ended'}, hooks {self.hooks}>"

    @cached_property
    def _document(self) -> dict[str, Any]:
        try:
            return read_run_file(self.path)
        except LiveRunError as error:
            raise ReadingError(str(error)) from error

    @property
    def run_id(self) -> str:
        return str(self._document["run_id"])

    @property
    def hooks(self) -> list[str]:
        """Observed hooks, in module order."""
        return list(self._document["hooks"])

    @property
    def live(self) -> bool:
        """Its host is still at it: `subscribe` can attach."""
        return goes_on(read_run_file(self.path))

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None while the run goes on, or when it was killed."""
        try:
            summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ReadingError(f"{self.path / 'summary.json'} cannot be read: {error}") from error
        return summary

    @property
    def archive(self) -> ArchiveView:
        """The archived activations.

        Raises:
            ArchiveError: the run has none, or a shard's schema is damaged.
        """
        return ArchiveView(self.path)

    def sae(self, hook: str) -> SparseAutoencoder:
        """The newest checkpoint of a hook's SAE: a torch module that takes raw rows [B, D].

        Raises:
            ReadingError: no checkpoint of it; says of which hooks there are some.
            CheckpointError: the checkpoint is damaged.
        """
        folder = self._checkpoint(hook)
        if folder is None:
            there = [name for name in self.hooks if self._checkpoint(name) is not None]
            raise ReadingError(f"{self.path}: no SAE of {hook!r} yet; there are {there}")
        sae, _ = load_sae(folder)
        return sae.eval().requires_grad_(False)

    def saes(self) -> Mapping[str, SparseAutoencoder]:
        """Hook -> its newest SAE, for the hooks that have one."""
        return {hook: self.sae(hook) for hook in self.hooks if self._checkpoint(hook) is not None}

    def metrics(self, metric: str | None = None, **where: str) -> Table:
        """metrics.csv as columns: {"time_s": float64[n], "metric": str[n], ..., "value": float64[n]}.

        metric, where: only rows with these values (`hook="layer.3"`, `stat="p99"`). `pandas.DataFrame`
        takes the result as it is.

        Raises:
            ReadingError: the run wrote none (its monitor is off), or there is no such column.
        """
        if metric is not None:
            where["metric"] = metric
        return read_metrics(self.path / "metrics.csv", where)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Token texts of a text model, if the run kept them."""
        return Vocabulary.of(self.path)

    def _checkpoint(self, hook: str) -> Path | None:
        return CheckpointStore(self.path / "sae" / file_slug(hook)).latest()


def _started_ns(file: Path) -> int:
    try:
        return int(json.loads(file.read_text())["started_unix_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
