"""Hugging Face `Trainer` (and TRL's, which are Trainers): `Trainer(..., callbacks=[ObserveCallback()])`.

Hook names are those of the model's modules, such as `model.layers.5`. Rows of padding are left out,
and token ids are archived beside the activations (on a CPU host; see `pipeline.text_inputs`).
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from asys_bench.callbacks.observed_training import ObservedTraining
from asys_bench.observing import Observation
from asys_bench.observing.settings import ConfigLike


class ObserveCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Observes the model during each `train`; arguments as `asys_bench.observe`'s, without the model.

    One step is one optimizer step. A training that raises does not tell its callbacks: then the
    observation closes when the interpreter exits, or by `close()`.
    """

    def __init__(self, config: ConfigLike = None, **overrides: Any) -> None:
        super().__init__()
        self._training = ObservedTraining(config, "optimizer step", overrides)

    @property
    def observation(self) -> Observation | None:
        """Of the `train` that goes on, or of the last one."""
        return self._training.observation

    def close(self) -> None:
        """End the observation now. Idempotent."""
        self._training.end()

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        self._training.start(model, processing_class)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.step()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self._training.report(logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.end()
