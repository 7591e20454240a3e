"""The clock of a host that has no model yet: it starts the observation when there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from asys_bench.capture.points.hookpoints import HookError, resolve
from asys_bench.capture.points.untrained_networks import is_compiled_in_place, unwrap
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.optimizer_watch import OptimizerWatch
from asys_bench.config.sections.hooks import HookConfig


class LateStepClock:
    """Implements `contracts.host.LateClock`.

    begin: starts the session of a model and returns its clock.
    """

    def __init__(
        self, hooks: Sequence[HookConfig], begin: Callable[[torch.nn.Module], StepClock]
    ) -> None:
        self._hooks, self._begin = hooks, begin
        self._clock: StepClock | None = None
        self._optimizers: OptimizerWatch | None = None
        self.should_stop = False

    @property
    def host_step(self) -> int:
        return self._clock.host_step if self._clock is not None else 0

    def misfit(self, model: torch.nn.Module) -> str | None:
        """See `LateClock.misfit`."""
        try:
            resolve(unwrap(model), self._hooks)
        except HookError as error:
            return str(error)
        return None

    def observe(self, model: torch.nn.Module, *, called: bool = False) -> None:
        """See `LateClock.observe`; a second call is an error of the host's."""
        if self._clock is not None:
            raise RuntimeError("a model is observed already: a run observes one")
        self._clock = clock = self._begin(model)
        self._optimizers = OptimizerWatch(unwrap(model), clock)
        self._optimizers.attach()
        if not is_compiled_in_place(model):
            clock.count_calls(called=called)

    def end(self) -> None:
        """The host has ended: the last step has, too. Idempotent."""
        if self._clock is not None:
            self._clock.end_counting()
        if self._optimizers is not None:
            self._optimizers.detach()

    def step(self, n: int = 1) -> None:
        if self._clock is not None:
            self._clock.step(n)

    def weights_updated(self) -> None:
        if self._clock is not None:
            self._clock.weights_updated()

    def report(self, name: str, value: float) -> None:
        if self._clock is not None:
            self._clock.report(name, value)
