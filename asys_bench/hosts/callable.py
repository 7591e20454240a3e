"""The `callable` host: a function of your own that builds a model and says how it is trained.

def build(seed, width=64):
    model = Net(width)

    def train(clock):
        for batch in data:
            if clock.should_stop:
                break
            ...
            clock.step()
        return {"loss": loss}

    return model, train

Where its run may go on (`run.resume`), `clock.folder` is for checkpoints of its own, `clock.last_step` is how
far it came, and `clock.begins_at(step)`, called first, says where it goes on; else `clock.folder` is None.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from asys_bench.contracts.host import (
    BaseHost,
    HostClock,
    HostError,
    HostOptions,
    HostPlugin,
    HostResult,
)
from asys_bench.contracts.sink import Misfit
from asys_bench.hosts.dotted_name import load_function
from asys_bench.hosts.forked import children_leave

_FORM = "it must return (model, train) with train(clock) -> figures or None"


class CallableOptions(HostOptions):
    """Options of the `callable` host."""

    function: str = Field(
        default="",
        description="`package.module:function`, called with the run's seed and `kwargs`; " + _FORM,
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments of it")
    step_unit: str = Field(default="step", description="what one step is, shown beside rates")

    def misfits(self) -> Iterator[Misfit]:
        """A function that is not named or cannot be imported."""
        try:
            load_function(self.function, "host.options.callable.function")
        except HostError as error:
            message = str(error).removeprefix("host.options.callable.function: ")
            yield Misfit(("function",), message, self.function, "")


class CallableHost(BaseHost):
    """Steps are whatever the function marks on the clock."""

    def __init__(self, options: CallableOptions, seed: int) -> None:
        self._options, self._seed = options, seed
        self.step_unit = options.step_unit
        self._train: Callable[[HostClock], Any] | None = None
        self._going_on: tuple[Path, int, Callable[[int], None]] | None = None

    def build(self) -> torch.nn.Module:
        """The model that the function makes."""
        options = self._options
        if not options.function:
            raise HostError("host.options.callable.function: name one as `package.module:function`")
        function = load_function(options.function, "host.options.callable.function")
        built = function(self._seed, **options.kwargs)
        if not (isinstance(built, tuple) and len(built) == 2):
            raise HostError(f"{options.function} returned a {type(built).__name__}; {_FORM}")
        model, train = built
        if not isinstance(model, torch.nn.Module) or not callable(train):
            kinds = f"({type(model).__name__}, {type(train).__name__})"
            raise HostError(f"{options.function} returned {kinds}; {_FORM}")
        self._train = train
        return model

    def goes_on(self, folder: Path, last_step: int, begins_at: Callable[[int], None]) -> None:
        self._going_on = folder, last_step, begins_at

    def run(self, clock: HostClock) -> HostResult:
        """Call the function's `train`."""
        if self._train is None:
            raise HostError("run() before build()")
        counting = _CountingClock(clock)
        if self._going_on is not None:
            counting.folder, counting.last_step, counting.begins_at = self._going_on
        started = time.monotonic()
        with children_leave():
            figures = self._train(counting) or {}
        return HostResult(
            counting.steps,
            time.monotonic() - started,
            stopped_early=counting.should_stop,
            figures={str(name): _figure(value) for name, value in figures.items()},
        )


class _CountingClock:
    """The given clock; it also counts, because a result says how many steps there were."""

    def __init__(self, clock: HostClock) -> None:
        self._clock = clock
        self.steps = 0
        self.folder: Path | None = None
        self.last_step = 0
        self.begins_at: Callable[[int], None] = lambda step: None

    @property
    def should_stop(self) -> bool:
        return self._clock.should_stop

    def step(self, n: int = 1) -> None:
        self.steps += n
        self._clock.step(n)

    def weights_updated(self) -> None:
        self._clock.weights_updated()

    def report(self, name: str, value: float) -> None:
        self._clock.report(name, value)

    @property
    def label_horizon(self) -> int:
        return self._clock.label_horizon

    def label(
        self,
        *,
        step: int | Sequence[int] | None = None,
        microbatch: int | None = None,
        **labels: Any,
    ) -> None:
        self._clock.label(step=step, microbatch=microbatch, **labels)


def _figure(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _build(options: HostOptions, seed: int) -> BaseHost:
    assert isinstance(options, CallableOptions)
    return CallableHost(options, seed)


plugin = HostPlugin(
    name="callable",
    summary="a function of your own that builds a model and trains it",
    options=CallableOptions,
    build=_build,
)
