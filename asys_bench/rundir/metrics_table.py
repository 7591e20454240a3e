"""metrics.csv as columns of numpy arrays."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.run_files import METRICS_FILE
from asys_bench.monitors.metrics_csv import COLUMNS
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files.below import open_file, text_lines

NUMBERS = ("time_s", "value")


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
        if tuple(next(lines, ())) != COLUMNS:
            raise ReadingError(f"{path}: its columns are not {', '.join(COLUMNS)}")
        for line in lines:
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
