"""`SAETrainerWorker`: one worker process that trains one SAE per hook point of its group.

It takes packets as they come, trains in short slices between two pulls (so that heartbeats go on
and the bus is emptied first), measures on held-out packets and writes checkpoints that SAELens
loads. A new incarnation resumes each SAE from its newest readable checkpoint.
"""

from __future__ import annotations

import logging
import time
import zlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.sink import BaseSink, SinkContext, SinkOptions, SinkPlugin
from asys_bench.sae import CheckpointError, SAEConfig, SAETrainer

log = logging.getLogger(__name__)


class SAETrainerOptions(SinkOptions):
    """Options of the `sae_trainer` sink."""

    sae: SAEConfig = Field(default_factory=SAEConfig, description="the SAE of every hook")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="fnmatch glob over hook names -> fields of `sae` that differ there; "
        "the last glob that matches wins, field by field",
    )
    max_packets: int = Field(default=256, ge=1, le=65536, description="most packets of one pull")
    linger_s: float = Field(
        default=0.05, gt=0, le=1, description="longest wait of one pull, in seconds"
    )
    train_slice_s: float = Field(
        default=0.1,
        gt=0,
        le=2,
        description="longest training of one SAE between two pulls, in seconds",
    )
    evaluate_interval_s: float = Field(
        default=2.0,
        gt=0,
        description="time between two held-out measurements of an SAE, in seconds",
    )
    final_train_s: float = Field(
        default=2.0,
        ge=0,
        description="training left over at the end may take this long, in seconds",
    )

    @model_validator(mode="after")
    def _overrides_fit(self) -> Self:
        for glob in self.overrides:
            self.for_hook(glob)
        return self

    def for_hook(self, hook: str) -> SAEConfig:
        """The configuration of one hook's SAE. Raises ValueError when an override does not fit."""
        merged = self.sae.model_dump(exclude_unset=True)
        for glob, fields in self.overrides.items():
            if glob == hook or fnmatchcase(hook, glob):
                merged.update(fields)
        return SAEConfig.model_validate(merged)


class _Training:
    """One hook's trainer, its folder and its metrics."""

    def __init__(self, hook: str, options: SAETrainerOptions, context: SinkContext) -> None:
        self.hook = hook
        config = options.for_hook(hook)
        config = config.model_copy(
            update={"seed": config.seed ^ context.seed ^ zlib.crc32(hook.encode())}
        )
        self.trainer = SAETrainer(config, model_name=context.run_id, hook_name=hook)
        self.folder = Path(context.run_dir) / "sae" / file_slug(hook)
        self.rejected = False
        now = time.monotonic()
        self.evaluated_at = self.saved_at = now
        slot = context.slot
        self.loss = slot.gauge("sae_loss", hook=hook)
        self.fvu = slot.gauge("sae_fvu", hook=hook)
        self.l0 = slot.gauge("sae_l0", hook=hook)
        self.dead = slot.gauge("sae_dead_ratio", hook=hook)
        self.dense = slot.gauge("sae_dense_ratio", hook=hook)
        self.steps = slot.counter("sae_steps", hook=hook)
        self.rows = slot.counter("sae_rows", hook=hook)
        self.trained = slot.counter("sae_rows_trained", hook=hook)
        self.checkpoints = slot.counter("sae_checkpoints", hook=hook)
        self.nonfinite = slot.counter("sae_nonfinite_rows", hook=hook)
        self.rejected_packets = slot.counter("sae_rejected_packets", hook=hook)
        if self.folder.exists():
            self._resume()

    def _resume(self) -> None:
        try:
            path = self.trainer.load(self.folder)
        except CheckpointError as error:
            log.error("%s: no checkpoint can be used, training starts anew: %s", self.hook, error)
            return
        if path is not None:
            log.info("%s: resumed at step %d from %s", self.hook, self.trainer.steps, path.name)

    def publish(self) -> None:
        running = self.trainer.metrics
        self.loss.set(running.loss)
        self.l0.set(running.l0)
        self.dead.set(running.dead_fraction)
        self.steps.set(running.steps)
        self.rows.set(running.rows_ingested)
        self.trained.set(running.rows_trained)
        self.nonfinite.set(running.rows_refused)

    def evaluate(self) -> None:
        self.evaluated_at = time.monotonic()
        found = self.trainer.evaluate()
        if found is not None:
            self.fvu.set(found.fvu)
            self.l0.set(found.l0)
            self.dense.set(found.dense_fraction)

    def save(self) -> None:
        self.saved_at = time.monotonic()
        try:
            if self.trainer.save(self.folder) is not None:
                self.checkpoints.add()
        except CheckpointError as error:
            log.error("%s: checkpoint not written, the last one stays: %s", self.hook, error)


class SAETrainerWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: SAETrainerOptions) -> None:
        self._options = options
        self.max_packets = options.max_packets
        self.linger_s = options.linger_s
        self._trainings: dict[int, _Training] = {}

    def open(self, context: SinkContext) -> None:
        self._context = context
        self._options.sae.apply_threads()

    def consume(self, lease: Lease) -> None:
        for packet in lease:
            training = self._trainings.get(packet.hook_id)
            if training is None:
                hook = self._context.name_of(packet.hook_id)
                training = _Training(hook, self._options, self._context)
                self._trainings[packet.hook_id] = training
            if training.rejected:
                training.rejected_packets.add()
                continue
            try:
                training.trainer.ingest(
                    self._context.decode(packet),
                    (packet.source, packet.shard, packet.seq),
                    1.0 / packet.sampling_rate,
                )
            except ValueError as error:
                training.rejected = True
                training.rejected_packets.add()
                log.error("%s: not trained any more: %s", training.hook, error)

    def idle(self) -> None:
        now = time.monotonic()
        for training in self._trainings.values():
            if training.rejected:
                continue
            trained = training.trainer.train(
                budget_s=self._options.train_slice_s, between_steps=self._context.heartbeat
            )
            if trained:
                training.publish()
            if now - training.evaluated_at > self._options.evaluate_interval_s:
                training.evaluate()
            if now - training.saved_at > training.trainer.config.checkpoint_interval_s:
                training.save()
            self._context.heartbeat()

    def close(self) -> None:
        """Spend what is left of the training budget, measure once more and write everything."""
        share = min(self._options.final_train_s, self._context.time_left_s() / 3)
        for training in self._trainings.values():
            training.trainer.train(
                budget_s=max(0.0, share / len(self._trainings)),
                wait_for_fill=False,
                between_steps=self._context.heartbeat,
            )
            training.publish()
            training.evaluate()
            self._context.heartbeat()
            training.save()


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, SAETrainerOptions)
    return SAETrainerWorker(options)


plugin = SinkPlugin(
    name="sae_trainer",
    summary="trains one sparse autoencoder per hook point, online",
    options=SAETrainerOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.sae", "torch._dynamo"),  # the first optimizer imports it: over a second
    partition=True,
)
