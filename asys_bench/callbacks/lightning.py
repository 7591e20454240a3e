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

from asys_bench.callbacks.observed_training import ObservedTraining
from asys_bench.observing import Observation
from asys_bench.observing.settings import ConfigLike


class ObserveCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Observes the LightningModule during each `fit`; arguments as `asys_bench.observe`'s, without
    the model. One step is one training batch.
    """

    def __init__(self, config: ConfigLike = None, **overrides: Any) -> None:
        super().__init__()
        self._training = ObservedTraining(config, "batch", overrides)

    @property
    def observation(self) -> Observation | None:
        """Of the `fit` that goes on, or of the last one."""
        return self._training.observation

    def close(self) -> None:
        """End the observation now. Idempotent."""
        self._training.end()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._training.start(pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._training.step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.report(trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._training.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._training.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._training.end()
