"""The host: whatever runs the model under observation.

A host builds its model, runs its own (blocking) loop and marks each step on the clock it is given.
It knows nothing of hooks, buses or workers, so that it trains bit-identically without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

if TYPE_CHECKING:
    import torch

    from asys_bench.contracts.bus import BaseDataBus
    from asys_bench.contracts.sink import Misfit
    from asys_bench.contracts.stats import Slot


class HostOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a host's own option model (`host.options.<kind>` in YAML)."""

    @property
    def trains(self) -> bool:
        """The model's weights change while the host runs, and `BaseHost.save_weights` keeps them."""
        return False

    def misfits(self) -> Iterable[Misfit]:
        """What cannot work here, asked before the host is built; files may be looked at.

        A `Misfit.path` is inside these options.
        """
        return ()


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

    @property
    def label_horizon(self) -> int:
        """Host steps that a label may come late (`labels.horizon`); 0: nobody wants labels."""

    def label(
        self,
        *,
        step: int | Sequence[int] | None = None,
        microbatch: int | None = None,
        **labels: Any,
    ) -> None:
        """What is known of the rows of a forward call: numbers, booleans or texts (`contracts.labels`),
        one for the whole call, or one per row. They go to whoever wants labels; without such a sink this
        does nothing.

        step, microbatch: of the call, where it is not the last one of the model; up to `labels.horizon`
            host steps back. A host whose model is called in parts alone labels a call before it marks
            the next step. Several steps: each label has one entry for each of them, in one packet for
            all, which costs the host hardly more than one of a single call.
        labels: none at all: it is noted whether the call is captured, while that is known, so that labels
            that come later are not sent of a call that no hook has captured.

        Never raises. What cannot be sent is counted in `labels_unsent`, and the log says why.
        """


@dataclass(frozen=True)
class FedStream:
    """A stream of a host whose packets come from elsewhere.

    described: what run.json says of it beside its name: module, kind, rows, select, coin. side: it tells of
    the rows of others (`tokens`), and nothing is trained on it.
    """

    name: str
    described: Mapping[str, Any]
    side: bool = False


@dataclass(frozen=True)
class Feed:
    """What a host pushes by itself.

    shards: of the bus, one for each writer. names: further names to intern. step_unit: see
    `BaseHost.step_unit`.
    """

    streams: tuple[FedStream, ...]
    shards: int
    names: tuple[str, ...] = ()
    step_unit: str = "step"


@dataclass(frozen=True)
class Fed:
    """The bus of a host that pushes packets itself. capacity: of a shard."""

    bus: BaseDataBus
    capacity_bytes: int
    capacity_packets: int


class LateClock(HostClock, Protocol):
    """The clock of a host whose model exists only once it runs (`BaseHost.build` returned None)."""

    run_dir: Path
    """The run's folder."""
    steps_made: int
    """Steps so far; 0 before `observe`."""

    def misfit(self, model: torch.nn.Module) -> str | None:
        """Why `model` cannot be the one that is meant: a hook's glob matches none of its modules."""

    def observe(self, model: torch.nn.Module, *, called: bool = False) -> None:
        """Start observing `model`, once; blocks until the workers consume.

        Steps are then counted from its forward calls, until the host calls `step`; versions of the
        weights from steps of its optimizers. called: its first forward call is under way.

        Raises:
            HookError, AssemblyError, BusError, SupervisorError: it cannot start; says why and the fix.
        """

    def feed(self, feed: Feed) -> Fed:
        """Start a run without a model, once: its packets are pushed to this bus by the host itself
        (`HostPlugin.feeds`). Blocks until the workers consume. The bus ends with the host's loop.

        Raises:
            AssemblyError, BusError, SupervisorError: it cannot start; says why and the fix.
        """

    def step_to(self, host_step: int) -> None:
        """The host is in step `host_step` of its own count."""

    def metrics(self) -> Slot:
        """The host's part of the stats page, for figures of its own; after `observe` or `feed`."""

    def end(self) -> None:
        """The host's loop is over, and with it the last counted step. Idempotent."""


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

    can_be_saved: bool = False
    """It has `save` and `load`, and `run` calls `whole_at`."""

    whole_at: Callable[[int], None] = staticmethod(lambda step: None)
    """Set by who runs it. A host that can be saved calls it with its step wherever its state is whole:
    between two of its steps, and before it leaves because it was asked to stop. `save` may be called in
    it."""

    is_saved: bool = False
    """Set by who runs it: it is saved when it stops, so it leaves at its next whole point."""

    one_call_per_step: bool = False
    """It calls its model once per step at most. Packets are of microbatch 0 then, and no hook on the
    model needs to count its calls, which would cost each of them some microseconds."""

    @abstractmethod
    def build(self) -> torch.nn.Module | None:
        """Construct the model and return the module whose submodules hooks match.

        None: the model comes up while the host runs, which then calls `LateClock.observe`.

        Raises:
            HostError: an option that cannot work; names the option and the fix.
        """

    @abstractmethod
    def run(self, clock: Any) -> HostResult:
        """Run to the end or until `clock.should_stop`; blocks.

        clock: a `HostClock`; a `LateClock` if `build` returned None.
        """

    def save(self, folder: Path) -> None:
        """Write into the empty `folder` all that `load` needs to go on bit for bit: model, optimizer,
        step, random generators, position in the data.

        Raises:
            CheckpointError: it cannot be written.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be saved")

    def load(self, folder: Path) -> int:
        """After `build` and before `run`: go on from what `save` wrote; returns the step.

        Raises:
            CheckpointError: it is damaged, or of another model.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be saved")

    def goes_on(self, folder: Path, last_step: int, begins_at: Callable[[int], None]) -> None:
        """Told to a host that cannot be saved, after `build`, where its run may go on: it may keep
        checkpoints of its own in `folder`, earlier attempts came to `last_step`, and it calls
        `begins_at` with the step that it goes on from, before it makes one."""

    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        """JSON documents to keep in the run's folder, by file name (a vocabulary); after `build`."""
        return {}

    def save_weights(self, folder: Path) -> None:
        """Write the model's weights into this new folder, for `HostPlugin.evaluated`.

        Called between two steps, in the host's thread; draws no random number and changes nothing.
        """
        raise NotImplementedError

    def request_stop(self) -> None:
        """The user asked to stop, beyond `clock.should_stop`; called in a signal handler.

        For hosts that cannot look at the clock. It may raise KeyboardInterrupt into `run`.
        """

    def close(self) -> None:
        """Release what `build` took (environments). Idempotent."""


class HostError(RuntimeError):
    """The host cannot be built or run; the message names the option and the fix."""


@dataclass(frozen=True)
class EvaluatedText:
    """What a host gives an evaluation: a text model in eval mode, ready to run in a process of its own.

    model: the module in which the run's hook names are modules.
    run: calls it on (ids int64[B, T], mask int64[B, T]).
    logits: the same, for the logits float[B, T, V] of the next tokens; None: it predicts none.
    batches: of at least so many tokens, the same ones each time; (ids, mask).
    about: what the text and the weights are, for the report.
    """

    model: torch.nn.Module
    run: Callable[[torch.Tensor, torch.Tensor], Any]
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    batches: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    about: dict[str, Any]


@dataclass(frozen=True)
class EvaluatedAgent:
    """An agent and an environment of its own.

    model: as of `EvaluatedText`.
    agent: a `sae.evaluation.policy.Agent`.
    environment: one of gymnasium's interface.
    """

    model: torch.nn.Module
    agent: Any
    environment: Any
    about: dict[str, Any]


Evaluated = EvaluatedText | EvaluatedAgent


@dataclass(frozen=True)
class HostPlugin:
    """What a host module exports as `plugin` (entry point group `asys.host`)."""

    name: str
    summary: str
    options: type[HostOptions]
    build: Callable[[HostOptions, int], BaseHost]
    """A host from its options and the run's seed."""
    evaluated: Callable[[HostOptions, int, Path | None], Evaluated] | None = None
    """The host's model for an evaluation, from its options, the run's seed and the folder with its
    weights; without a folder the weights that a run begins with. None: its model is known to the host
    alone. Raises HostError: it cannot be loaded."""
    feeds: bool = False
    """It has no model here: it pushes packets that come from elsewhere (`LateClock.feed`), so that a
    configuration needs no `hooks`."""
    unavailable: Callable[[], str | None] = lambda: None
