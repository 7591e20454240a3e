"""Training one SAE from the archive, epoch by epoch, so that it can be stopped at any moment.

An epoch trains on each row once. `sae.passes` is for live trainers, whose rows come only once. The
number of rows is known and nothing waits for a step, so batches are smaller, and the learning rate
settles at the end (`with_known_length`).

The position (epoch, packets taken in it) is part of each checkpoint's metadata. Training happens
after fixed numbers of rows, whatever time it takes, so a stopped and resumed training ends with the
same weights as one that ran through.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asys_bench.contracts.names import TOKENS
from asys_bench.offline.archive_packets import (
    PacketRows,
    archive_packets,
    archived_rows,
    joint_packets,
)
from asys_bench.offline.plan import Job
from asys_bench.sae import RunningMetrics, SAEConfig, SAEMetrics, SAETrainer
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_json
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore
from asys_bench.sae.checkpoint.native_format import CFG_FILE
from asys_bench.sae.checkpoint.trainer_state import read_config
from asys_bench.sae.exchange import adopt_when_filled, import_saelens, own_outliers
from asys_bench.sae.group.group_learner import TrainerGroup
from asys_bench.sae.training.device import CPU, TrainingDevice
from asys_bench.sinks.archive import Archive

BLOCK_ROWS = 4096
"""Most rows that are taken in between two trainings (never more than half of the reservoir)."""
SLICE_S = 0.2
"""Training between two looks at `should_stop`, in seconds."""
METADATA_KEY = "offline"
BATCH_ROWS = 512
"""Rows per step where `sae.batch_rows` is left at its default: half of a live trainer's."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a training has come: packets taken in epoch `epoch` (0 is the first)."""

    epoch: int = 0
    packets: int = 0


@dataclass(frozen=True, slots=True)
class HookResult:
    """How one SAE's training ended."""

    label: str
    finished: bool
    """False: stopped before the last epoch's end; the checkpoint goes on from there."""
    steps: int
    running: RunningMetrics
    held_out: SAEMetrics | None
    """None when no packet was held out, or no step was taken."""
    checkpoint: Path | None


class HookTraining:
    """One hook (or several at once), one SAE, one folder of checkpoints."""

    def __init__(
        self,
        archive: Archive,
        job: Job,
        folder: Path,
        *,
        epochs: int,
        seed: int = 0,
        model_name: str = "",
        start_from: Path | None = None,
        device: TrainingDevice = CPU,
        group: TrainerGroup | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[RunningMetrics], None] = lambda _: None,
    ) -> None:
        """Resumes from `folder`'s newest checkpoint; else begins, from `start_from` if given.

        group: ranks that train it together, all of them ready.

        Raises:
            CheckpointError: `folder` has checkpoints and none can be used, or `start_from` is
                damaged; ExchangeError: `start_from` cannot be taken over.
        """
        self._archive, self._job, self._folder, self._epochs = archive, job, folder, epochs
        self._should_stop, self._on_progress = should_stop, on_progress
        rows = epochs * archived_rows(archive, job.hook)
        own_seed = job.config.seed ^ seed ^ zlib.crc32(job.label.encode())
        config = with_known_length(job.config, rows, _batch_rows(folder)).model_copy(
            update={"seed": own_seed, "passes": 1.0}
        )
        self._initial = None
        if start_from is not None:
            self._initial, _ = import_saelens(start_from)
            config = own_outliers(config, self._initial)
        self.trainer = SAETrainer(
            config,
            model_name=model_name,
            hook_name=job.hook,
            hook_names=(job.hook, *job.others) if job.others else (),
            text=TOKENS in archive.hooks,
            device=device,
            group=group,
        )
        self.position = Position()
        self.checkpoint = self.trainer.load(folder) if folder.exists() else None
        if self.checkpoint is not None:
            self.position = _position_of(self.checkpoint)
            self._initial = None
        self._saved_at = time.monotonic()
        self._block = max(1, min(BLOCK_ROWS, config.buffer_rows // 2))
        self._fresh_rows = 0

    def run(self) -> HookResult:
        """Train until all epochs are done or `should_stop`; writes a checkpoint at the end.

        Raises:
            ArchiveError: a shard is damaged.
            ValueError: rows that cannot be trained on, or (transcoder) no two packets belong
                together.
            CheckpointError: a checkpoint cannot be written.
            DeviceMemoryError: the SAE does not fit the GPU.
            GroupError: another rank of the group has failed; the last checkpoint stays.
            ExchangeError: the SAE to start from does not fit.
        """
        if self.position.epoch >= self._epochs:
            finished, held_out = True, self.trainer.evaluate()
        else:
            finished = self._train()
            if finished:
                self._start_from_initial(0.0)
                self.trainer.train(wait_for_fill=False)
            held_out = self.trainer.evaluate()
            self._save(held_out)
        return HookResult(
            self._job.label,
            finished,
            self.trainer.steps,
            self.trainer.metrics,
            held_out,
            self.checkpoint,
        )

    def _train(self) -> bool:
        """Whether it came to the end."""
        if not self._spend():  # what a stopped training had left over
            return False
        for epoch in range(self.position.epoch, self._epochs):
            skip = self.position.packets
            for index, packet in enumerate(self._packets()):
                if index < skip:
                    continue
                self._take(packet)
                self.position = Position(epoch, index + 1)
                if self._fresh_rows >= self._block and not self._spend():
                    return False
            self.position = Position(epoch + 1, 0)
            if not self._spend():
                return False
        return True

    def _take(self, packet: PacketRows) -> None:
        """Give the trainer a packet; of a very large one, no more at once than it can shuffle."""
        for first in range(0, len(packet.rows_ND), self._block):
            if first:
                self.trainer.train()  # not `_spend`: a packet is taken as a whole
            part, whole = slice(first, first + self._block), (first, len(packet.rows_ND))
            step = packet.moment.host_step
            if packet.joint is not None:
                self.trainer.ingest_joint(packet.joint[part], host_step=step, part_of=whole)
                continue
            self.trainer.ingest(
                packet.rows_ND[part],
                packet.key,
                packet.weight,
                host_step=step,
                weights_version=packet.weights_version,
                part_of=whole,
            )
        self._fresh_rows += len(packet.rows_ND)

    def _packets(self) -> Iterator[PacketRows]:
        job = self._job
        if not job.others:
            return archive_packets(self._archive, job.hook)
        return joint_packets(self._archive, (job.hook, *job.others))

    def _spend(self) -> bool:
        """Train on what was taken in; False when it is to stop."""
        self._fresh_rows = 0
        self._start_from_initial(self.trainer.config.min_buffer_fill_ratio)
        while True:
            taken = self.trainer.train(budget_s=SLICE_S)
            self._on_progress(self.trainer.metrics)
            if time.monotonic() - self._saved_at > self.trainer.config.checkpoint_interval_s:
                self._save(None)
            if self._should_stop():
                return False
            if not taken:
                return True

    def _start_from_initial(self, fill_ratio: float) -> None:
        """Take over the SAE to start from, once the first step's rows give the input scale."""
        if self._initial is None:
            return
        if adopt_when_filled(self.trainer, self._initial, fill_ratio):
            self._initial = None

    def _save(self, held_out: SAEMetrics | None) -> None:
        self._saved_at = time.monotonic()
        where = {"epoch": self.position.epoch, "packets": self.position.packets}
        metadata: dict[str, Any] = {METADATA_KEY: where}
        if held_out is not None:
            metadata["held_out_fvu"], metadata["held_out_l0"] = held_out.fvu, held_out.l0
            metadata["held_out_fvu_all"] = held_out.fvu_all
        self.checkpoint = self.trainer.save(self._folder, metadata) or self.checkpoint


def with_known_length(config: SAEConfig, rows: int, batch_rows: int = BATCH_ROWS) -> SAEConfig:
    """`config` with `total_steps` for one pass over `rows`, where no schedule is asked for, and with
    `batch_rows` where it is left at its default.

    An archive of 1e5 rows is a few hundred steps, and more of them teach more than larger ones.
    Numbers: docs/benchmarks.md, "SAEs of a language model".
    """
    if config.batch_rows == SAEConfig.model_fields["batch_rows"].default:
        config = config.model_copy(update={"batch_rows": min(batch_rows, config.buffer_rows)})
    schedule = ("total_steps", "lr_half_steps")
    if any(getattr(config, name) != SAEConfig.model_fields[name].default for name in schedule):
        return config
    steps = max(1, int(rows * (1.0 - config.held_out_fraction) / config.batch_rows))
    return config.model_copy(update={"total_steps": steps})


def _batch_rows(folder: Path) -> int:
    """Rows per step of the training that `folder`'s newest checkpoint is of: the schedule counts its
    steps. `BATCH_ROWS` where there is none that can be read."""
    checkpoint = CheckpointStore(folder).latest()
    try:
        return BATCH_ROWS if checkpoint is None else read_config(checkpoint).batch_rows
    except CheckpointError:
        return BATCH_ROWS  # `load` says what is wrong, or passes it over


def _position_of(checkpoint: Path) -> Position:
    """Where the training that wrote `checkpoint` was; the start, for one that was not offline."""
    metadata = read_json(checkpoint / CFG_FILE).get("metadata")
    found = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if found is None:
        return Position()
    try:
        return Position(int(found["epoch"]), int(found["packets"]))
    except (KeyError, TypeError, ValueError):
        reason = f"metadata.{METADATA_KEY} {found!r} is not epoch and packets"
        raise CheckpointError(checkpoint / CFG_FILE, reason) from None
