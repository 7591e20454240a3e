"""Host steps counted from forward calls of the model, until the user marks steps."""

from __future__ import annotations

from typing import Any

import torch

from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.root_hook import RootHook


class StepCounter:
    """A step begins with each forward call of `called` after the first, unless the clock is paused.

    So `for batch in data: model(batch); observation.step()` numbers steps as counting alone does, and
    the first `step()` takes over without a jump.
    """

    def __init__(self, called: torch.nn.Module, clock: StepClock) -> None:
        self._called, self._clock = called, clock
        self._begun = False
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    @property
    def counting(self) -> bool:
        return self._handle is not None

    def attach(self, *, called: bool = False) -> None:
        """Count from now on. called: the first forward call is under way already."""
        self._begun = called
        if self._handle is None:
            self._handle = self._called.register_forward_pre_hook(RootHook(self._before))

    def detach(self) -> None:
        """Stop counting. Idempotent."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def end(self) -> None:
        """The last step has ended as well."""
        if self.counting and self._begun:
            self._clock.step()
        self.detach()

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        if self._clock.paused:
            return
        if self._begun:
            self._clock.step()
        self._begun = True
