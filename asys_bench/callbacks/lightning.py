"""Lightning: `Trainer(callbacks=[ObserveCallback()])`, of `lightning` or of `pytorch_lightning`.

Hook names are those of the LightningModule's modules, such as `encoder.layers.3`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

if find_spec("lightning") is not None:
    from lightning.pytorch import Callback
else:  # the same library under its older name
    from pytorch_lightning import Callback  # type: ignore[assignment,unused-ignore]

from asys_bench.callbacks.loss_rows import loss_rows_or_none
from asys_bench.callbacks.observed_training import During, ObservedTraining
from asys_bench.run.observation import Observation
from asys_bench.run.settings import ConfigLike


class ObserveCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Observes the LightningModule during each `fit`; arguments as `asys_bench.observe`'s, without
    the model.

    One step is one optimizer step, `trainer.global_step` at the beginning of the batch: a resumed
    training goes on from its own. The batches of a step (`accumulate_grad_batches`) are its
    microbatches 0, 1, ... Several optimizers that step in one batch are as many steps.

    Rows are labelled with their loss, where one cross entropy is the loss, and with `labels.columns` of a
    batch that is a dict.

    during: "validation" is the validation loop and the sanity check, "training" everything else.
    """

    def __init__(
        self, config: ConfigLike = None, *, during: During = "training", **options: Any
    ) -> None:
        super().__init__()
        self._training = ObservedTraining(config, "optimizer step", during, options)
        self._batch_of_step = 0
        self._step = -1
        self._is_early = False  # begun for the sanity check

    @property
    def observation(self) -> Observation | None:
        """Of the `fit` that goes on, or of the last one."""
        return self._training.observation

    def close(self) -> None:
        """End the observation now. Idempotent."""
        self._training.close()

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        if self._training.during != "training":
            self._start(trainer, pl_module)
            self._is_early = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not (self._is_early and self._training.follows(trainer)):
            self._start(trainer, pl_module)
        self._is_early = False

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        same = trainer.global_step == self._step
        self._batch_of_step = self._batch_of_step + 1 if same else 0
        self._step = trainer.global_step
        self._training.step_to(trainer, self._step, self._batch_of_step)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if not self._training.wants_labels:
            return
        rows = loss_rows_or_none(loss)
        if rows is not None:
            self._training.label(trainer, loss=rows)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._training.label_columns_of(trainer, batch)
        self._training.step_to(trainer, trainer.global_step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._training.enter(trainer, "validation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.enter(trainer, "training")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.report(trainer, trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._training.end(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._training.end(trainer)

    def _start(self, trainer: Any, pl_module: Any) -> None:
        self._batch_of_step, self._step = 0, -1
        self._training.start(trainer, pl_module, trainer.global_step, optimizers=trainer.optimizers)
        self._training.enter(trainer, "training")
