"""One SAE training in a process of its own, by ours or by a peer's trainer, and what it learnt.

    python -P -m asys_bench.harness.scenarios.sae_training < spec.json > outcome.json

Every trainer gets the same rows in the same order, the same batch, k and number of features, and as
many threads. Its speed counts from `WARM_STEPS` steps on (compilers, allocators), up to the end. What
it learnt is measured by its own module on rows that nobody trained on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODULE = "asys_bench.harness.scenarios.sae_training"
WARM_STEPS = 3
EVALUATION_ROWS = 4096
TRAIN_FILE, HELD_OUT_FILE, TRUTH_FILE = "train.npy", "held_out.npy", "truth.npy"


@dataclass(frozen=True)
class TrainerSpec:
    """One training; plain JSON data."""

    trainer: str
    folder: str
    """Holds train.npy [N, D], held_out.npy [M, D] and perhaps truth.npy [G, D], float32."""
    rows: int
    batch_rows: int
    d_sae: int
    k: int
    architecture: str = "topk"
    threads: int = 2
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """The trainer's own settings, over its best stock ones."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What one training came to."""

    trainer: str
    rows: int
    seconds: float
    """Of the rows that count for the speed."""
    rows_per_s: float
    fvu: float
    l0: float
    dead_ratio: float
    """Features that fire for none of the held-out rows."""
    mmcs: float | None = None
    recovered_ratio: float | None = None


class TrainingError(RuntimeError):
    """The training process ended without an outcome; says what it printed."""


def train_in_process(spec: TrainerSpec, timeout_s: float) -> TrainingOutcome:
    """Train in a new interpreter with `spec.threads` threads.

    Raises:
        TrainingError: it crashed or took longer than `timeout_s` (it is ended then).
    """
    threads = {name: str(spec.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    cpu = {} if torch.cuda.is_available() else {"SPARSIFY_DISABLE_TRITON": "1"}
    environment = {**os.environ, **threads, **quiet, **cpu}
    command = [sys.executable, "-P", "-W", "ignore", "-m", MODULE]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        ) as process,
    ):
        try:
            out, _ = process.communicate(json.dumps(asdict(spec)).encode(), timeout_s)
        except subprocess.TimeoutExpired:
            raise TrainingError(
                f"{spec.trainer}: not done in {timeout_s:g} s; raise the time or lower rows"
            ) from None
        finally:
            if process.poll() is None:
                process.kill()
        log.seek(0)
        said = log.read().decode(errors="replace").strip()
    if process.returncode:
        raise TrainingError(f"{spec.trainer}: exit {process.returncode}: {said[-1500:]}")
    return TrainingOutcome(**json.loads(out))


class Stopwatch:
    """Rows trained over time, told by the trainer's own requests for data."""

    def __init__(self, warm_rows: int) -> None:
        self._warm_rows = warm_rows
        self._begin: tuple[float, int] | None = None
        self._end = (0.0, 0)

    def tick(self, rows_trained: int) -> None:
        """Call it whenever `rows_trained` rows have been trained on."""
        now = time.perf_counter(), rows_trained
        if self._begin is None and rows_trained >= self._warm_rows:
            self._begin = now
        self._end = now

    @property
    def measured(self) -> tuple[float, int]:
        """(seconds, rows) after the warm-up; the whole run when it was shorter."""
        begin = self._begin or (self._end[0], 0)
        return max(1e-9, self._end[0] - begin[0]), self._end[1] - begin[1]


def batches(spec: TrainerSpec, data: Any, watch: Stopwatch | None) -> Iterator[torch.Tensor]:
    """`spec.rows` rows in whole batches, copied out of the mapped file."""
    for first in range(0, spec.rows // spec.batch_rows * spec.batch_rows, spec.batch_rows):
        batch_BD = torch.from_numpy(np.array(data[first : first + spec.batch_rows]))
        if watch is not None:
            watch.tick(first)
        yield batch_BD


@torch.no_grad()
def run(spec: TrainerSpec) -> TrainingOutcome:
    """Train here and now, and measure."""
    # The trainers import this module, and evaluation costs torch's whole import.
    from asys_bench.harness.scenarios.sae_trainers import TRAINERS
    from asys_bench.sae.evaluation import ReconstructionMeter, recovery

    torch.set_num_threads(spec.threads)
    folder = Path(spec.folder)
    data = np.load(folder / TRAIN_FILE, mmap_mode="r")
    if len(data) < spec.rows:
        raise TrainingError(f"{spec.rows} rows are asked for, {TRAIN_FILE} has {len(data)}")
    watch = Stopwatch(WARM_STEPS * spec.batch_rows)
    pulls = spec.trainer != "asys"  # ours tells by itself what it has trained on
    with torch.enable_grad():
        trained = TRAINERS[spec.trainer](spec, batches(spec, data, watch if pulls else None), watch)
    seconds, rows = watch.measured
    held_out_ND = torch.from_numpy(np.load(folder / HELD_OUT_FILE))
    meter = ReconstructionMeter(held_out_ND.shape[1], spec.d_sae)
    for x_BD in torch.split(held_out_ND, EVALUATION_ROWS):
        x_hat_BD, acts_BF = trained.reconstruct(x_BD)
        meter.update(x_BD, x_hat_BD, acts_BF)
    report = meter.report()
    found = None
    if (folder / TRUTH_FILE).exists():
        found = recovery(torch.from_numpy(np.load(folder / TRUTH_FILE)), trained.directions_FD)
    return TrainingOutcome(
        trainer=spec.trainer,
        rows=spec.rows,
        seconds=seconds,
        rows_per_s=rows / seconds,
        fvu=report.fvu,
        l0=report.l0,
        dead_ratio=report.dead_fraction,
        mmcs=found.mmcs if found else None,
        recovered_ratio=found.recovered if found else None,
    )


def main() -> int:
    """Entry point of the training process; whatever a trainer prints goes to standard error."""
    result = os.dup(1)
    os.dup2(2, 1)
    outcome = run(TrainerSpec(**json.load(sys.stdin)))
    os.write(result, (json.dumps(asdict(outcome)) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
