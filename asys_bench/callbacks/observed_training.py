"""What the callbacks share: an observation from the start of a training to its end, every time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from asys_bench.observing import Observation, observe
from asys_bench.observing.settings import ConfigLike


class ObservedTraining:
    """Starts an observation per training and ends it; everything else passes through or does nothing.

    Arguments as `observe`'s; the model comes with the training.
    """

    def __init__(self, config: ConfigLike, step_unit: str, overrides: Mapping[str, Any]) -> None:
        self._config, self._step_unit, self._overrides = config, step_unit, dict(overrides)
        self.observation: Observation | None = None
        """Of the training that goes on, or of the last one."""

    def start(self, model: torch.nn.Module, tokenizer: Any = None) -> None:
        """A training begins; one that is observed already stays so."""
        if self.observation is None or self.observation.closed:
            self.observation = observe(
                model,
                self._config,
                step_unit=self._step_unit,
                tokenizer=tokenizer,
                **self._overrides,
            )

    def step(self, n: int = 1) -> None:
        if self.observation is not None:
            self.observation.step(n)

    def report(self, figures: Mapping[str, Any]) -> None:
        """Show the numbers among `figures`."""
        if self.observation is None:
            return
        for name, value in figures.items():
            number = _number(value)
            if number is not None:
                self.observation.report(name, number)

    def end(self) -> None:
        """The training ended or failed. Idempotent."""
        if self.observation is not None:
            self.observation.close()


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_cpu:
        return float(value)
    return None
