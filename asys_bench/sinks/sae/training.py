"""One SAE inside a worker: its trainer, its folder, its clocks and its metrics."""

from __future__ import annotations

import functools
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from asys_bench.contracts.names import TOKENS, file_slug
from asys_bench.contracts.run_files import SAE_DIR
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import Counter, Gauge, Slot, StatsError
from asys_bench.sae import CheckpointError, SAEConfig, SAETrainer
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sae.group.group_learner import TrainerGroup
from asys_bench.sae.training.device import CPU, DeviceMemoryError, TrainingDevice
from asys_bench.sinks.sae.pace import Pace
from asys_bench.sinks.sae.start import Beginning, StartFrom
from asys_bench.system.files.atomic import Fsync

log = logging.getLogger(__name__)
M = TypeVar("M", Gauge, Counter)


class Training:
    """label: its name in metrics and folders (`SAETrainerOptions.labels`). hook: whose rows it takes; of
    an SAE of several hooks the first, and `others` are the rest."""

    def __init__(
        self,
        label: str,
        hook: str,
        config: SAEConfig,
        context: SinkContext,
        start: StartFrom | None = None,
        *,
        others: tuple[str, ...] = (),
        device: TrainingDevice = CPU,
        group: TrainerGroup | None = None,
    ) -> None:
        self.label = label
        self._beginning: Beginning | None = None
        misfit: ExchangeError | CheckpointError | None = None
        if start is not None:
            try:
                self._beginning = Beginning(start, label, config)
                config = self._beginning.config
            except (ExchangeError, CheckpointError) as error:
                misfit = error
        config = config.model_copy(
            update={"seed": config.seed ^ context.seed ^ zlib.crc32(label.encode())}
        )
        self.trainer = SAETrainer(
            config,
            model_name=context.run_id,
            hook_name=hook,
            hook_names=(hook, *others) if others else (),
            text=TOKENS in context.names(),
            device=device,
            group=group,
        )
        ranks = 1 if group is None else group.size
        self.pace = Pace(label, config, on_gpu=device is not CPU, ranks=ranks)
        self._context = context
        self._run_dir = Path(context.run_dir)
        self.folder = self._run_dir / SAE_DIR / file_slug(label)
        self.rejected = False
        self.evaluated_at = self.saved_at = time.monotonic()
        self._slot = context.slot
        self._name_metrics(context.slot, label, paired=bool(others))
        self._unsaved = 0
        self._sync = context.fsync is not Fsync.NEVER
        self.on_checkpoint: Callable[[str], None] | None = None
        """Called with the label when a checkpoint of an SAE that has been trained is complete."""
        self._resume()
        if self.trainer.steps:
            self._beginning = None  # an earlier incarnation began with it
        elif misfit is not None:
            self.reject(misfit)

    def _name_metrics(self, slot: Slot, label: str, *, paired: bool) -> None:
        self._loss = slot.gauge("sae_loss", hook=label)
        self._fvu = slot.gauge("sae_fvu", hook=label)
        self._l0 = slot.gauge("sae_l0", hook=label)
        self._dead = slot.gauge("sae_dead_ratio", hook=label)
        self._dense = slot.gauge("sae_dense_ratio", hook=label)
        self._steps = slot.counter("sae_steps", hook=label)
        self._rows = slot.counter("sae_rows", hook=label)
        self._trained = slot.counter("sae_rows_trained", hook=label)
        self._checkpoints = slot.counter("sae_checkpoints", hook=label)
        self._nonfinite = slot.counter("sae_nonfinite_rows", hook=label)
        self.rejected_packets = slot.counter("sae_rejected_packets", hook=label)

        def gauge(name: str) -> Gauge:
            return _or_private(lambda: slot.gauge(name, hook=label), Gauge)

        def counter(name: str) -> Counter:
            return _or_private(lambda: slot.counter(name, hook=label), Counter)

        self.skipped_packets = counter("sae_skipped_packets")
        self.unpaired_packets = counter("sae_unpaired_packets") if paired else None
        self._rollbacks = counter("sae_rollbacks")
        self._over_budget = counter("sae_over_budget_rows")
        self._window_fvu = gauge("sae_window_fvu")
        self._fvu_all = gauge("sae_fvu_all")
        self._outlier_rows = counter("sae_outlier_rows")
        self._outlier_norm = gauge("sae_outlier_norm")
        self._checkpoint_failures = counter("sae_checkpoint_failures")
        self._lives, self._turned = counter("sae_lives"), gauge("sae_turned_features")
        self._new_lives = gauge("sae_new_lives_ratio")
        self._survival = gauge("sae_feature_survival_ratio")
        self._drift = gauge("sae_input_drift")
        self._mixing = gauge("sae_mixing_autocorrelation")
        self._age = gauge("sae_row_age_versions")

    def _resume(self) -> None:
        try:
            path = self.trainer.load(self.folder, below=self._run_dir)
        except DeviceMemoryError as error:
            self.reject(error)
            return
        except CheckpointError as error:
            log.error("%s: no checkpoint can be used, training starts anew: %s", self.label, error)
            return
        if path is not None:
            log.info("%s: resumed at step %d from %s", self.label, self.trainer.steps, path.name)

    def reject(self, reason: object) -> None:
        """Stop training this one; the worker's others go on."""
        if self.rejected:
            return
        self.rejected = True
        # As text: a kept log record would keep the error's frames, and with them views of the lease.
        log.error("%s: not trained any more: %s", self.label, str(reason))

    def expect(self, rows: torch.Tensor) -> None:
        """The first rows are about to come: building a large SAE takes longer than usual."""
        if self.trainer.d_in is None and rows.ndim and rows.shape[-1]:
            try:
                self.pace.forecast(rows.shape[-1])
            except ValueError:
                return  # it does not fit them, which the trainer says
            if self.pace.promise_s:
                self._promise()

    def train(
        self,
        budget_s: float,
        *,
        wait_for_fill: bool = True,
        between_steps: Callable[[], None] | None = None,
    ) -> int:
        """Steps trained within `budget_s`; the first ones wait for the SAE to start from."""
        if self._beginning is not None:
            fill_ratio = self.trainer.config.min_buffer_fill_ratio if wait_for_fill else 0.0
            try:
                if self._beginning.begin(self.trainer, fill_ratio):
                    self._beginning = None
            except (ExchangeError, CheckpointError) as error:
                self.reject(error)
            if self._beginning is not None:
                return 0
        if self.trainer.d_in is not None:
            self.pace.forecast(self.trainer.d_in)
        if between_steps is not None and self.pace.promise_s:
            between_steps = self._promise
        began = time.monotonic()
        try:
            steps = self.trainer.train(
                budget_s=budget_s, wait_for_fill=wait_for_fill, between_steps=between_steps
            )
        except DeviceMemoryError as error:
            self.reject(error)
            return 0
        self.pace.stepped(steps, time.monotonic() - began)
        return steps

    def _promise(self) -> None:
        """A heartbeat for a step that outlasts the usual time between two."""
        self._context.slot.beat(self.pace.promise_s)

    def finish(self, budget_s: float, saes: int) -> None:
        """The run drains: what training is left within `budget_s`, a last measurement, a checkpoint.

        What would outlast the time that is left is not begun: a killed worker writes nothing.
        saes: which share the worker.
        """
        left_s, slow = self._context.time_left_s(), self.pace.promise_s > 0
        if slow and 2 * (self.pace.step_s or 0.0) > left_s:
            budget_s = 0.0
        if budget_s > 0:
            self.train(budget_s, wait_for_fill=False, between_steps=self._context.heartbeat)
        self.publish()
        words = self.pace.final_words(self.trainer.steps, self.trainer.metrics.rows_ingested, saes)
        if words is not None and not self.rejected:
            log.warning("%s: %s", self.label, words)
        left_s = self._context.time_left_s()
        if slow and self.pace.save_s > left_s:
            log.warning(
                "%s: no last checkpoint: it takes about %.0f s and %.1f s are left; raise "
                "run.drain_timeout_s",
                self.label,
                self.pace.save_s,
                left_s,
            )
            return
        self.evaluate()
        self._context.slot.beat(self.pace.save_s if slow else 0.0)
        self.save()
        self.publish()

    def publish(self) -> None:
        """Bring the metrics up to date."""
        running = self.trainer.metrics
        self._loss.set(running.loss)
        self._l0.set(running.l0)
        self._dead.set(running.dead_fraction)
        self._steps.set(running.steps)
        self._rows.set(running.rows_ingested)
        self._trained.set(running.rows_trained)
        self._nonfinite.set(running.rows_refused)
        self._rollbacks.set(running.rollbacks)
        self._over_budget.set(running.rows_over_budget)
        self._outlier_rows.set(running.rows_outlying)
        self._lives.set(running.lives)
        self._turned.set(running.turned)
        self._new_lives.set(running.new_lives)
        for metric, value in (
            (self._window_fvu, running.window_fvu),
            (self._survival, running.feature_survival),
            (self._drift, running.input_drift),
            (self._mixing, running.mixing_autocorrelation),
            (self._age, running.row_age_versions),
            (self._outlier_norm, running.outlier_norm),
        ):
            if math.isfinite(value):
                metric.set(value)

    def evaluate(self) -> None:
        """Measure on held-out rows."""
        self.evaluated_at = time.monotonic()
        try:
            found = self.trainer.evaluate()
        except DeviceMemoryError as error:
            self.reject(error)
            return
        if found is not None:
            self._fvu.set(found.fvu)
            self._fvu_all.set(found.fvu_all)
            self._l0.set(found.l0)
            self._dense.set(found.dense_fraction)

    def evaluated_in_model(self, document: Mapping[str, Any]) -> None:
        """Publish what the SAE was found to do to the model (schema `asys.evaluation/1`)."""
        of = document.get("language") or document.get("policy") or {}
        own = of.get("passed") or of.get("replaced") or {}
        spliced = own.get("spliced") or {}
        for name, value in (
            ("sae_ce_recovered", own.get("ce_recovered")),
            ("sae_return_recovered", own.get("return_recovered")),
            ("sae_kl_nats", spliced.get("kl_mean")),
        ):
            if isinstance(value, int | float) and math.isfinite(value):
                make = functools.partial(self._slot.gauge, name, hook=self.label)
                _or_private(make, Gauge).set(float(value))

    def save(self) -> None:
        """Write a checkpoint. A failure is said once and counted, training goes on, the last one stays."""
        self.saved_at = time.monotonic()
        try:
            written = self.trainer.save(self.folder, sync=self._sync, below=self._run_dir)
        except CheckpointError as error:
            self._checkpoint_failures.add()
            self._unsaved += 1
            if self._unsaved == 1:
                log.error(
                    "%s: checkpoint not written, training goes on and the last one stays "
                    "(further failures are only counted): %s",
                    self.label,
                    str(error),
                )
            return
        if written is None:
            return
        self._checkpoints.add()
        if self.on_checkpoint is not None and self.trainer.steps:
            self.on_checkpoint(self.label)
        if self._unsaved:
            log.warning(
                "%s: checkpoints are written again, after %d failures", self.label, self._unsaved
            )
            self._unsaved = 0


def _or_private(make: Callable[[], M], kind: type[M]) -> M:
    """A metric of the stats page, or one that nobody sees when the page has no room left."""
    try:
        return make()
    except StatsError:
        return kind(memoryview(bytearray(8)).cast("q"), 0)
