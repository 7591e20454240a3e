"""The version of the weights, counted from steps of whatever optimizer has them."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from asys_bench.capture.tags.clock import StepClock

log = logging.getLogger(__name__)


class OptimizerWatch:
    """Marks the clock after each step of an optimizer that holds parameters of `model`."""

    def __init__(self, model: torch.nn.Module, clock: StepClock) -> None:
        self._model, self._clock = model, clock
        self._ours: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def attach(self) -> None:
        """Watch all optimizers of this process; a second call changes nothing."""
        if self._handle is None:
            self._handle = register_optimizer_step_post_hook(self._stepped)

    def detach(self) -> None:
        """Stop. Idempotent."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        try:
            ours = self._ours.get(optimizer)
            if ours is None:
                mine = {id(parameter) for parameter in self._model.parameters()}
                held = (p for group in optimizer.param_groups for p in group["params"])
                ours = self._ours[optimizer] = any(id(p) in mine for p in held)
            if ours:
                self._clock.weights_updated()
        except Exception as error:  # noqa: BLE001 - fail-open: nothing of ours may reach the host
            self.detach()
            log.warning(
                "optimizer steps are no longer counted, after %s: %s", type(error).__name__, error
            )
