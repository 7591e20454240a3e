"""A reader of reservoirs: the rows of one hook, in the host's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asys_bench.change.reservoir.rows import ReservoirRows
from asys_bench.change.reservoir.window_files import rows_of, uncovered, window_files
from asys_bench.change.reservoir.windows import reservoir_folder
from asys_bench.contracts.run_files import attempts_in, first_steps_after
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError


class ReservoirError(RuntimeError):
    """A file of a reservoir is damaged; says which and why."""


def read_reservoir(run_dir: Path, hook: str, *, constant: bool = False) -> ReservoirRows | None:
    """The rows of one hook; None where the run has no reservoir of it. A run may go on meanwhile.

    constant: those of the constant evaluation batch.
    Of steps that the host made again (`run.resume`) the last attempt's rows are given.

    Raises:
        ReservoirError: a file is damaged.
        OSError: the folder is a link, or cannot be listed.
    """
    folder = reservoir_folder(run_dir, hook)
    parts: list[ReservoirRows] = []
    for file, begin in uncovered(window_files(folder, "c" if constant else "w", run_dir)):
        try:
            parts.append(rows_of(file, begin))
        except CheckpointError as error:
            if not file.path.exists():  # joined meanwhile
                return read_reservoir(run_dir, hook, constant=constant)
            raise ReservoirError(str(error)) from error
        except ValueError as error:
            raise ReservoirError(f"{file.path}: {error}") from error
    parts = [one for one in parts if len(one)]
    if not parts:
        return None
    if len({(one.values.dtype, one.values.shape[1]) for one in parts}) > 1:
        raise ReservoirError(f"{folder}: its windows have rows of several widths or types")
    return _not_made_again(run_dir, ReservoirRows.joined(parts)).of_time()


def _not_made_again(run_dir: Path, rows: ReservoirRows) -> ReservoirRows:
    """Without rows of an attempt from a later one's first step on."""
    kept = np.ones(len(rows), bool)
    for attempt, step in first_steps_after(attempts_in(run_dir)).items():
        kept &= (rows.attempt != attempt) | (rows.host_step < step)
    return rows if kept.all() else rows[np.flatnonzero(kept)]
