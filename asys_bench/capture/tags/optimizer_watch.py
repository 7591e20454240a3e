"""The version of the weights, counted from steps of whatever optimizer has them."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from asys_bench.capture.notices import Notices
from asys_bench.capture.tags.clock import StepClock

optimizer_method: Callable[..., Any] | None
"""None: it was not compiled."""
try:
    from asys_bench.contracts.native._steps import optimizer_method
except ImportError:
    optimizer_method = None

log = logging.getLogger(__name__)


_SCALED_STEP = torch.amp.GradScaler.step.__code__
_FRAMES = 16

SCALED = (
    "the loss is scaled (GradScaler): gradients are captured as autograd passes them, multiplied by the "
    "scale of their moment, which changes"
)


class OptimizerWatch:
    """Marks the clock after each step of an optimizer that holds parameters of `model`.

    notices: told where a GradScaler makes those steps; of a run that captures gradients.

    `stepped` is compiled where that can be (`contracts/native/steps_module.cpp`).
    """

    __slots__ = ("_clock", "_handle", "_last", "_model", "_notices", "_ours")

    def __init__(
        self, model: torch.nn.Module, clock: StepClock, notices: Notices | None = None
    ) -> None:
        self._model, self._clock, self._notices = model, clock, notices
        self._ours: weakref.WeakKeyDictionary[torch.optim.Optimizer, bool] = (
            weakref.WeakKeyDictionary()
        )
        self._last: weakref.ref[torch.optim.Optimizer] | None = None
        """The optimizer of ours that made the last step: nearly always the only one."""
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def attach(self) -> None:
        """Watch all optimizers of this process; a second call changes nothing."""
        if self._handle is None:
            self._handle = register_optimizer_step_post_hook(self.stepped)

    def detach(self) -> None:
        """Stop. Idempotent."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer of this process has made a step. Never raises."""
        self._stepped(optimizer, args, kwargs)

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        try:
            if self._last is not None and self._last() is optimizer:
                self._clock.weights_updated()
                return
            ours = self._ours.get(optimizer)
            if ours is None:
                mine = {id(parameter) for parameter in self._model.parameters()}
                held = (p for group in optimizer.param_groups for p in group["params"])
                ours = self._ours[optimizer] = any(id(p) in mine for p in held)
                if ours and self._notices is not None and _is_scaled():
                    self._notices.say(SCALED)
            if ours:
                self._last = weakref.ref(optimizer)
                self._clock.weights_updated()
        except Exception as error:  # noqa: BLE001 - fail-open: nothing of ours may reach the host
            self.detach()
            log.warning(
                "optimizer steps are no longer counted, after %s: %s", type(error).__name__, error
            )


IN_PYTHON = OptimizerWatch.stepped
"""What the compiled method must do."""
if optimizer_method is not None:
    OptimizerWatch.stepped = optimizer_method(OptimizerWatch)  # type: ignore[method-assign]


def _is_scaled() -> bool:
    """Whether a GradScaler is around the step that was made."""
    frame = sys._getframe(1)
    for _ in range(_FRAMES):
        if frame.f_code is _SCALED_STEP:
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False
