"""What the callbacks share: an observation per training, at the trainer's own step.

A callback tells the calls of the training itself from the others that its library makes of the same
model (validation batches, an evaluated policy). `during` says which of them are captured; the others
are counted in `hook_skipped` and count neither as steps nor as microbatches.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

from asys_bench.capture.tags.clock import StepClock
from asys_bench.config import ConfigError
from asys_bench.config.problems import Origin, Problem, did_you_mean
from asys_bench.run.observation import Observation, observe
from asys_bench.run.settings import ConfigLike

log = logging.getLogger(__name__)

Part = Literal["training", "validation", "generation"]
During = Literal["training", "validation", "all"]


class ObservedTraining:
    """Starts an observation per training and ends it; everything else passes through or does nothing.

    Methods take the `training` that they are about: an object of the library that lives as long. Those
    of another training than the one that is observed do nothing.

    during: which calls of the model are captured; generates: "generation" is one of the words.
    one_call_per_step: as `observe`'s, unless the options say something else.
    options: as `observe`'s; model and step come with the training.
    """

    def __init__(
        self,
        config: ConfigLike,
        step_unit: str,
        during: str,
        options: Mapping[str, Any],
        *,
        generates: bool = False,
        one_call_per_step: bool = False,
    ) -> None:
        valid = (*get_args(During), *(("generation",) if generates else ()))
        if during not in valid:
            raise ConfigError([_wrong_during(during, valid)])
        for name in ("start_step", "optimizers"):
            if name in options:
                raise TypeError(f"{name}: a callback takes the trainer's own")
        self.during = during
        self._part: Part = "training"
        self._config = config
        self._step_unit = step_unit
        self._options = {"one_call_per_step": one_call_per_step, **options}
        self._training: weakref.ref[Any] | None = None
        self._lock = threading.Lock()
        self.observation: Observation | None = None
        """Of the training that goes on, or of the last one."""

    def start(
        self,
        training: Any,
        model: torch.nn.Module,
        step: int,
        *,
        tokenizer: Any = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        """A training begins, in `step`. An observation that is open ends: a callback follows one
        training at a time, and few libraries tell it that one has failed.

        Raises: what `observe` raises.
        """
        with self._lock:
            before = self.observation
            if before is not None and not before.closed:
                log.warning("%r ends: its callback now observes another training", before)
                before.close()
            self._training = weakref.ref(training)
            self.observation = observe(
                model,
                self._config,
                start_step=step,
                optimizers=optimizers,
                **{"step_unit": self._step_unit, "tokenizer": tokenizer, **self._options},
            )
            self.observation.step_to(step)

    def follows(self, training: Any) -> bool:
        """Whether `training` is the one that is observed."""
        return self._training is not None and self._training() is training

    def clock_of(self, training: Any) -> StepClock | None:
        """The clock of the observation, for a trainer of very short steps; None: `training` has none."""
        if self.observation is None or not self.follows(training):
            return None
        return self.observation.clock

    def step_to(self, training: Any, step: int, microbatch: int | None = None) -> None:
        if self.observation is not None and self.follows(training):
            self.observation.step_to(step, microbatch)

    def enter(self, training: Any, part: Part) -> None:
        """The calls of the model that come now are of `part`."""
        if self.observation is not None and self.follows(training):
            self._part = part
            self.observation.paused = self.during not in (part, "all")

    @contextmanager
    def generating(self, training: Any) -> Iterator[None]:
        """Calls of the model are those of a generation meanwhile, where they would be the training's."""
        before = self._part
        if before != "training":
            yield
            return
        self.enter(training, "generation")
        try:
            yield
        finally:
            self.enter(training, before)

    def report(self, training: Any, figures: Mapping[str, Any]) -> None:
        """Show the numbers among `figures`."""
        if self.observation is None or not self.follows(training):
            return
        for name, value in figures.items():
            number = _number(value)
            if number is not None:
                self.observation.report(name, number)

    def label(
        self, training: Any, *, step: int | Sequence[int] | None = None, **labels: Any
    ) -> None:
        """See `Observation.label`."""
        if self.observation is not None and self.follows(training):
            self.observation.label(step=step, **labels)

    @property
    def wants_labels(self) -> bool:
        """Whether some sink takes labels: without one, nothing is computed for them."""
        return self.observation is not None and self.observation.wants_labels

    @property
    def label_horizon(self) -> int:
        """Steps that a label may come late."""
        return self.observation.config.labels.horizon if self.observation is not None else 0

    @property
    def label_columns(self) -> Sequence[str]:
        """Columns of a batch that are labels (`labels.columns`)."""
        return self.observation.config.labels.columns if self.observation is not None else ()

    def label_part(self, training: Any) -> None:
        """Where calls of all parts are captured, label the last one with its part: `validation` and
        `generation`, each 1 or 0; 0 in both is the training itself."""
        if self.during == "all":
            parts = {name: self._part == name for name in ("validation", "generation")}
            self.label(training, **parts)

    def label_columns_of(self, training: Any, batch: Any) -> None:
        """Label the last call of the model with what `batch` has of these columns."""
        if isinstance(batch, Mapping):
            found = {name: batch[name] for name in self.label_columns if name in batch}
            if found:
                self.label(training, **found)

    def end(self, training: Any) -> None:
        """`training` has ended or failed. Idempotent."""
        if self.follows(training):
            self.close()

    def close(self) -> None:
        """End the observation. Idempotent."""
        if self.observation is not None:
            self.observation.close()


def _wrong_during(value: object, valid: Sequence[str]) -> Problem:
    return Problem.at(
        Origin("ObserveCallback()"),
        "must be one of the valid words",
        path="during",
        value=value,
        fix=did_you_mean(str(value), valid) or f"write one of: {', '.join(valid)}",
        valid=valid,
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_cpu:
        return float(value)
    return None
