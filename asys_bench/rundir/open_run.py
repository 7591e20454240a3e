"""`open_run(path)`: everything a run has written, while it goes on or long after; its metrics as columns
of numpy arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.run_files import (
    ALARM_DIR,
    ALARM_OVER_SCHEMA,
    ALARM_SCHEMA,
    ALARMS_FILE,
    METRICS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    RunFileError,
    attempts_in,
    is_run,
    read_run_file,
    runs_in,
)
from asys_bench.monitors.metrics_csv import COLUMNS, OLD_COLUMNS
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.live_run import ReadingError, goes_on
from asys_bench.rundir.probes import FoundProbe, read_probes
from asys_bench.rundir.timeline_document import Timeline, read_timeline
from asys_bench.rundir.token_rows import Vocabulary
from asys_bench.sae import SparseAutoencoder, latest_checkpoint, load_sae
from asys_bench.sinks.archive import Repeats
from asys_bench.store.mirror import CopyError, local_folder
from asys_bench.system.files.below import (
    open_file,
    parse_json,
    read_json,
    text_lines,
)

NUMBERS = ("time_s", "value")
_SAME_ALARM = ("worker", "attempt", "incarnation", "number")


class Table(dict[str, npt.NDArray[Any]]):
    """Column name -> array; all are equally long. `pandas.DataFrame(table)` takes it."""

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.values()))) if self else 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict per row, in file order."""
        names = list(self)
        for values in zip(*(self[name].tolist() for name in names), strict=True):
            yield dict(zip(names, values, strict=True))


def read_metrics(path: Path, where: Mapping[str, str]) -> Table:
    """Rows whose columns have the values of `where`. A line that is still being written is left out.

    Raises:
        ReadingError: no file, another format, or no such column.
    """
    unknown = [name for name in where if name not in COLUMNS]
    if unknown:
        raise ReadingError(
            f"{METRICS_FILE} has no column {unknown[0]!r}; it has {', '.join(COLUMNS)}"
        )
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    try:
        os.close(open_file(path))
    except FileNotFoundError:
        raise ReadingError(f"{path}: the run wrote no metrics (monitors.log is off)") from None
    except (OSError, ValueError) as error:
        raise ReadingError(f"{path} cannot be read: {error}") from error
    lines = csv.reader(line for line in text_lines(path) if line.endswith("\n"))
    wanted = [(COLUMNS.index(name), value) for name, value in where.items()]
    try:
        header = tuple(next(lines, ()))
        if header not in (COLUMNS, OLD_COLUMNS):
            raise ReadingError(f"{path}: its columns are not {', '.join(COLUMNS)}")
        for line in lines:
            if len(header) == len(line) == len(OLD_COLUMNS):
                line.append("0")
            if len(line) == len(COLUMNS) and all(line[index] == value for index, value in wanted):
                for name, value in zip(COLUMNS, line, strict=True):
                    columns[name].append(value)
        return Table({name: _array(name, values) for name, values in columns.items()})
    except (ValueError, csv.Error) as error:
        raise ReadingError(f"{path}: a damaged line ({error}): asys-run verify") from error


def _array(name: str, values: list[str]) -> npt.NDArray[Any]:
    if name not in NUMBERS:
        return np.array(values, dtype=np.str_)
    return np.array([float(value) if value else np.nan for value in values], dtype=np.float64)


def open_run(path: str | os.PathLike[str], *, repeats: Repeats = "all") -> Run:
    """The run in the folder `path`; of a folder of runs, the newest. Or the run whose copy is at a URI
    (`s3://`, `gs://`, `file://`; `storage.uri`): its files come when they are opened.

    repeats: of a step that the host made again after it had fallen back to an older checkpoint
        (`run.resume`), the archive has the rows of all attempts; "last" leaves the earlier ones out.

    Raises:
        ReadingError: there is no run, or no copy of one.
    """
    try:
        folder = local_folder(path)
    except CopyError as error:
        raise ReadingError(str(error)) from None
    if not is_run(folder):
        try:
            found = runs_in(folder)
        except OSError as error:
            raise ReadingError(f"{folder} cannot be listed: {error}") from error
        if not found:
            raise ReadingError(f"{folder}: neither a run ({RUN_FILE}) nor a folder of runs")
        folder = max(found, key=lambda run: (_started_ns(run), run.name))
    return Run(folder, repeats)


class Run:
    """A run's folder. Nothing is read before it is asked for, and nothing is ever written."""

    def __init__(self, path: Path, repeats: Repeats = "all") -> None:
        self.path, self.repeats = path, repeats

    def __repr__(self) -> str:
        return f"<run {self.path}, {'going on' if self.live else 'ended'}, hooks {self.hooks}>"

    @cached_property
    def _document(self) -> dict[str, Any]:
        return self._document_now()

    def _document_now(self) -> dict[str, Any]:
        try:
            return read_run_file(self.path)
        except RunFileError as error:
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
        return goes_on(self._document_now())

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Every life of a host on this run, as run.json has it: when it began and ended and how, its
        first and last step, and the account of its packets. One where the run never went on; none in a
        run of an earlier version."""
        return attempts_in(self.path)

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None while the run goes on, or when it was killed."""
        path = self.path / SUMMARY_FILE
        try:
            summary = read_json(path, below=self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ReadingError(f"{path} cannot be read: {error}") from error
        if not isinstance(summary, dict):
            raise ReadingError(f"{path} holds no object")
        return summary

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """What `alarm` sinks raised, in order, as `alarm/alarms.jsonl` has it (schema `asys.alarm/1`), each
        with `over_host_step` where values came back to what they were before. A line that cannot be read,
        or is being written, is left out."""
        found: list[dict[str, Any]] = []
        by_number: dict[tuple[str, ...], dict[str, Any]] = {}
        for line in text_lines(self.path / ALARM_DIR / ALARMS_FILE, below=self.path):
            with suppress(ValueError):
                document = parse_json(line)
                if not isinstance(document, dict):
                    continue
                key = tuple(str(document.get(name)) for name in _SAME_ALARM)
                if document.get("schema") == ALARM_SCHEMA:
                    found.append(document)
                    by_number[key] = document
                elif document.get("schema") == ALARM_OVER_SCHEMA and key in by_number:
                    by_number[key]["over_host_step"] = document.get("host_step")
        return found

    @property
    def archive(self) -> ArchiveView:
        """The archived activations.

        Raises:
            ArchiveError: the run has none, or a shard's schema is damaged.
        """
        return ArchiveView(self.path, self.repeats)

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

    def timeline(self, label: str) -> Timeline:
        """Which features of an SAE (a hook, or `<hook>#<variant>`) were born when, as `asys-run timeline`
        or the run's report found it last.

        Raises:
            ReadingError: nobody has made it yet, or the file is damaged.
        """
        return read_timeline(self.path, label)

    def features(self, hook: str) -> FeatureIndex:
        """What a `feature_index` sink has written last of each feature of the hook's SAE: examples,
        histograms, densities, partners.

        Raises:
            ReadingError: the hook has no index (yet), or it is damaged.
        """
        return FeatureIndex.open(self.path, hook)

    def probes(self, hook: str | None = None) -> dict[str, list[FoundProbe]]:
        """Hook -> its linear probes to labels, as a `probe` sink has written them last: what each is worth on
        held-out rows, and its weights. Empty where there are none.

        Raises:
            ReadingError: a file is damaged.
        """
        found = read_probes(self.path)
        return found if hook is None else {name: of for name, of in found.items() if name == hook}

    def metrics(self, metric: str | None = None, **where: str) -> Table:
        """metrics.csv as columns: {"time_s": float64[n], "metric": str[n], ..., "value": float64[n]}.

        metric, where: only rows with these values (`hook="layer.3"`, `stat="p99"`). `pandas.DataFrame`
        takes the result as it is.

        Raises:
            ReadingError: the run wrote none (its monitor is off), or there is no such column.
        """
        if metric is not None:
            where["metric"] = metric
        return read_metrics(self.path / METRICS_FILE, where)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Token texts of a text model, if the run kept them."""
        return Vocabulary.of(self.path)

    def _checkpoint(self, hook: str) -> Path | None:
        try:
            return latest_checkpoint(self.path, hook)
        except OSError as error:
            raise ReadingError(f"{self.path}: no SAE of {hook!r} can be read: {error}") from error


def _started_ns(run_dir: Path) -> int:
    try:
        return int(read_run_file(run_dir)["started_unix_ns"])
    except (RunFileError, ValueError, KeyError, TypeError):
        return 0
