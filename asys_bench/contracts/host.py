"""The host: whatever runs the model under observation.

A host builds its model, runs its own (blocking) loop and marks each step on the clock it is given.
It knows nothing of hooks, buses or workers, so that it trains bit-identically without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from pydantic import BaseModel


class HostOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a host's own option model (`host.options.<kind>` in YAML)."""


class HostClock(Protocol):
    """Given to a running host; every call costs well under a microsecond."""

    @property
    def should_stop(self) -> bool:
        """The user asked to stop: leave the loop at the next step."""

    def step(self, n: int = 1) -> None:
        """`n` host steps (environment steps, batches) have passed."""

    def weights_updated(self) -> None:
        """The optimizer has stepped: activations now come from new weights."""

    def report(self, name: str, value: float) -> None:
        """A figure of the host itself (reward, loss) for monitors; not on a hot path."""


@dataclass(frozen=True)
class HostResult:
    """What a finished run says of itself; figures go in the run's summary."""

    steps: int
    seconds: float
    stopped_early: bool = False
    figures: dict[str, float] = field(default_factory=dict)


class BaseHost(ABC):
    """One host. Built once, run once."""

    step_unit: str = "step"
    """What one step is ("env step", "batch"); shown beside rates."""

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """Construct the model and return the module whose submodules hooks match.

        Raises:
            HostError: an option that cannot work; names the option and the fix.
        """

    @abstractmethod
    def run(self, clock: HostClock) -> HostResult:
        """Run to the end or until `clock.should_stop`; blocks."""

    def close(self) -> None:
        """Release what `build` took (environments). Idempotent."""


class HostError(RuntimeError):
    """The host cannot be built or run; the message names the option and the fix."""


@dataclass(frozen=True)
class HostPlugin:
    """What a host module exports as `plugin` (entry point group `asys.host`)."""

    name: str
    summary: str
    options: type[HostOptions]
    build: Callable[[HostOptions, int], BaseHost]
    """A host from its options and the run's seed."""
    unavailable: Callable[[], str | None] = lambda: None
