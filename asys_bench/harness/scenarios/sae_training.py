"""One SAE training in a process of its own, and what it learnt.

    python -P -m asys_bench.harness.scenarios.sae_training < spec.json > outcome.json

The trainer here is ours; `suites/peers/trainers.py` runs those of other libraries in the same way. Every
trainer gets the same rows in the same order, the same batch, k and number of features, and as many
threads. Its speed counts from `WARM_STEPS` steps on (compilers, allocators), up to the end. What it
learnt is measured by its own module on rows that nobody trained on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def train_in_process(
    spec: TrainerSpec,
    timeout_s: float,
    program: Sequence[str] = ("-m", MODULE),
    environment: Mapping[str, str] | None = None,
) -> TrainingOutcome:
    """Train in a new interpreter with `spec.threads` threads.

    program: what the interpreter runs; it calls `main` with the trainers that it has.
    environment: variables over those of this process.

    Raises:
        TrainingError: it crashed or took longer than `timeout_s` (it is ended then).
    """
    threads = {name: str(spec.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables = {**os.environ, **threads, **(environment or {})}
    command = [sys.executable, "-P", "-W", "ignore", *program]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=variables
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


@dataclass(frozen=True)
class Trained:
    """A finished SAE: its own code for reconstructing, and its decoder rows."""

    reconstruct: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """x_BD -> (x_hat_BD, acts_BF)."""
    directions_FD: torch.Tensor


Trainer = Callable[[TrainerSpec, Iterator[torch.Tensor], Stopwatch], Trained]
"""Trains on the batches; the iterator ticks the watch by itself for trainers that pull from it."""


def train_asys(spec: TrainerSpec, rows: Iterator[torch.Tensor], watch: Stopwatch) -> Trained:
    """Ours with its defaults, told the number of steps."""
    from asys_bench.sae import SAEConfig, SAETrainer
    from asys_bench.sae.config import PENALISED
    from asys_bench.sae.training.device import prepare_process

    prepare_process()
    config = SAEConfig.model_validate(
        {
            "architecture": spec.architecture,
            "d_sae": spec.d_sae,
            "k": spec.k,
            "batch_rows": spec.batch_rows,
            "buffer_rows": max(spec.batch_rows, min(65_536, spec.rows)),
            "passes": 1.0,
            "held_out_fraction": 0.0,
            "seed": spec.seed,
            "threads": spec.threads,
            "total_steps": max(1, spec.rows // spec.batch_rows),
            **({"target_l0": float(spec.k)} if spec.architecture in PENALISED else {}),
            **spec.settings,
        }
    )
    config.apply_threads()
    trainer = SAETrainer(config)
    for number, batch_BD in enumerate(rows):
        trainer.ingest(batch_BD, (0, 0, number))
        trainer.train()
        watch.tick(trainer.metrics.rows_trained)
    trainer.train(wait_for_fill=False)
    watch.tick(trainer.metrics.rows_trained)
    sae = trainer.sae
    if sae is None:
        raise TrainingError("asys: no rows were given")

    def reconstruct(x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        acts_BF = sae.encode(x_BD)
        return sae.decode(acts_BF), acts_BF

    return Trained(reconstruct, sae.W_dec.detach())


@torch.no_grad()
def run(spec: TrainerSpec, train: Trainer) -> TrainingOutcome:
    """Train here and now, and measure."""
    from asys_bench.sae.evaluation import ReconstructionMeter, recovery

    torch.set_num_threads(spec.threads)
    folder = Path(spec.folder)
    data = np.load(folder / TRAIN_FILE, mmap_mode="r")
    if len(data) < spec.rows:
        raise TrainingError(f"{spec.rows} rows are asked for, {TRAIN_FILE} has {len(data)}")
    watch = Stopwatch(WARM_STEPS * spec.batch_rows)
    pulls = train is not train_asys  # ours tells by itself what it has trained on
    with torch.enable_grad():
        trained = train(spec, batches(spec, data, watch if pulls else None), watch)
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


def main(trainers: Mapping[str, Trainer]) -> int:
    """Entry point of the training process; whatever a trainer prints goes to standard error."""
    result = os.dup(1)
    os.dup2(2, 1)
    spec = TrainerSpec(**json.load(sys.stdin))
    outcome = run(spec, trainers[spec.trainer])
    os.write(result, (json.dumps(asdict(outcome)) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main({"asys": train_asys}))
