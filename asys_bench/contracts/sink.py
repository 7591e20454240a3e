"""The sink: what a worker process does with the packets of its group (train an SAE, archive).

The worker loop (`workers.worker`) owns the process: it attaches the bus, beats the heart, pulls,
acknowledges after `consume` returned, and drains when the run ends. A sink only consumes.

- `consume` must not keep views past its return; an at_least_once sink has made the rows durable
  (as its fsync policy says) before it returns, because returning acknowledges them.
- An exception from `consume` gives the lease back and ends the process; the watchdog restarts it.
- A new incarnation resumes from what the last one wrote in `run_dir`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from asys_bench.contracts.bus import BusAccount, Delivery, Lease
from asys_bench.contracts.stats import Slot, StatsPage
from asys_bench.system.files.atomic import Fsync

if TYPE_CHECKING:
    import torch

    from asys_bench.contracts.packet import ActivationPacket
    from asys_bench.contracts.preprocessor import Positions


@dataclass(frozen=True, slots=True)
class Misfit:
    """Something in a sink's section that is valid by itself and cannot work as it stands.

    path: inside the section, such as ("workers",) or ("options", "start_from").
    """

    path: tuple[str | int, ...]
    message: str
    value: object
    fix: str


@dataclass(frozen=True, slots=True)
class PlannedSAE:
    """An SAE that a sink trains on the rows of a hook."""

    label: str
    """Its name in metrics and folders."""
    hook: str
    """The hook whose rows it takes."""
    config: Any
    """Its `sae.SAEConfig`."""
    others: tuple[str, ...] = ()
    """Further hooks whose rows it takes at the same moments: a transcoder's output, or the rest of a
    crosscoder's hooks."""
    device: str = "cpu"
    """What it is trained on, as configured."""
    copies: int = 1
    """Processes that have all of its weights, and train it together."""

    @property
    def hooks(self) -> tuple[str, ...]:
        """All hooks whose rows it takes, in order."""
        return (self.hook, *self.others)


class SinkOptions(BaseModel, extra="forbid", frozen=True):
    """Base of a sink's own option model (`sinks.<name>.options` in YAML)."""

    @property
    def device_wish(self) -> tuple[str, bool]:
        """(what its workers are to compute on: `auto`, `cuda`, `cuda:N`, `cpu`, or "" where that is no
        question; whether `auto` may take the host's GPU)."""
        return "", False

    @property
    def ranks(self) -> int:
        """Processes that each of its workers consists of: the worker, and others that it starts. Each
        gets a place of its own in the run's plan."""
        return 1

    def misfits(self, workers: int, hooks: Sequence[str]) -> Iterable[Misfit]:
        """What cannot work, asked once when a configuration loads; files may be looked at.

        workers, hooks: of the same section; hooks are globs over hook names.
        """
        return ()

    @property
    def weights_every_s(self) -> float | None:
        """How often it wants a host that trains to keep its weights, in seconds; None: never."""
        return None

    def labels(self, hooks: Sequence[str]) -> Sequence[str]:
        """What a worker of these hooks labels its metrics with; it sizes its part of the stats page.

        Raises:
            ValueError: two of them would be the same.
        """
        return hooks

    def planned_saes(self, hooks: Sequence[str]) -> Iterable[PlannedSAE]:
        """SAEs that are trained on the rows of these hooks, and every SAE of several hooks. Of sinks with
        `SinkPlugin.trains_saes`; what a run takes and its summary are told from them.

        Raises:
            ValueError: settings of a hook's SAE that do not go together.
        """
        return ()


@dataclass(frozen=True)
class SinkContext:
    """What a sink gets from its worker process."""

    name: str
    """The worker's name, e.g. "trainer-0"; stable over restarts."""
    run_dir: Path
    run_id: str
    seed: int
    slot: Slot
    """This worker's part of the stats page, for its own metrics."""
    wall_offset_ns: int
    """Add to a packet's timestamp to get nanoseconds since the epoch."""
    incarnation: int
    """0 for the first start of an attempt, +1 for each restart."""
    name_of: Callable[[int], str]
    """Interned name of a hook or encoding id."""
    decode: Callable[[ActivationPacket], torch.Tensor]
    """The packet's tensor through the right decoder; may view the lease's memory."""
    heartbeat: Callable[[], None]
    """Call it inside work that may outlast the heartbeat timeout."""
    time_left_s: Callable[[], float]
    """Seconds until the drain deadline; infinity while the run goes on."""
    fsync: Fsync = Fsync.CHECKPOINT
    """The run's policy on forcing bytes to the device."""
    names: Callable[[], Collection[str]] = tuple
    """The interned names of all streams (and encodings) so far."""
    rows: Callable[[ActivationPacket], Positions | None] = lambda packet: None
    """Which row of the captured tensor each decoded row is; None: all of them, in order."""
    members: int = 1
    """Workers that share the packets of its group, this one included."""
    grid: Callable[[ActivationPacket], tuple[int, ...]] = lambda packet: packet.shape[:-1]
    """Leading dimensions of the captured tensor; () if not known."""
    rows_each: Callable[[ActivationPacket], int] = lambda packet: 1
    """Rows that each row of the captured tensor has become (its heads); `rows` and `grid` count those."""
    device: str = ""
    """What the run's plan has chosen for this worker to compute on, `cpu` or `cuda:N`; "" without."""
    device_why: str = ""
    """The reason for it."""
    device_shared: bool = False
    """The host computes there too."""
    ranks: tuple[Mapping[str, Any], ...] = ()
    """Where the plan has put this worker's further processes (`SinkOptions.ranks`): CPUs, memory node,
    device, as plain data."""
    attempt: int = 0
    """Which life of the run this is: with (source, shard, seq) the key of a packet. Files of earlier
    attempts are in `run_dir`."""
    first_packet: int = 0
    """Add to a packet's seq for a number that goes on over the attempts."""
    group: str = ""
    """The consumer group that it is a member of."""
    account: Callable[[], BusAccount] | None = None
    """The bus's counters."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's whole configuration, as plain data."""
    page: StatsPage | None = None
    """Every process's figures, to read."""
    clock_shift_ns: int = 0
    """Add to this process's CLOCK_MONOTONIC to compare it with a packet's timestamp."""


class BaseSink(ABC):
    """One sink in one worker process."""

    max_packets: int = 256
    """Most packets of one lease."""
    min_packets: int = 1
    linger_s: float = 0.05
    """How long one pull waits for `min_packets`."""

    keeps_leases: bool = False
    """`consume` takes the lease over and acknowledges it itself, later; several are out at a time."""
    wants_packets: bool = True
    """False: nothing is pulled before the next call of `idle`, which waits a moment by itself."""

    @abstractmethod
    def open(self, context: SinkContext) -> None:
        """Prepare, and resume from an earlier incarnation's files."""

    @abstractmethod
    def consume(self, lease: Lease) -> None:
        """Process one lease; it is acknowledged when this returns (see `keeps_leases`)."""

    def idle(self) -> None:
        """Called when a pull came back empty, and between leases: background work goes here.

        It must return within about a second so that heartbeats go on.
        """

    @abstractmethod
    def close(self) -> None:
        """The stream ended or the run drains: write everything; mind `time_left_s`."""


_WORTH_PACKETS, _WORTH_BYTES, _WORTH_SHARE = 128, 4 << 20, 8
_MOST_LINGER_S, _LINGER_SHARE = 1.0, 0.1


def worth_a_pull(lease: Lease, config: Mapping[str, Any]) -> int:
    """Packets like those of `lease` that a sink in no hurry waits for (`BaseSink.min_packets`): a pull
    takes as long as some packets do, because what it needs is in no cache any more. They take an eighth of
    the bus at most.

    config: `SinkContext.config`.
    """
    bus = config.get("bus", {})
    packets = min(_WORTH_PACKETS, int(bus.get("capacity_packets", 4096)) // _WORTH_SHARE)
    nbytes = min(_WORTH_BYTES, int(bus.get("capacity_mib", 8) * (1 << 20)) // _WORTH_SHARE)
    held = sum(packet.payload.nbytes for packet in lease)
    return max(1, min(packets, nbytes * len(lease) // max(1, held)))


def patience_s(config: Mapping[str, Any]) -> float:
    """`BaseSink.linger_s` of a sink in no hurry: a second, and no more than a tenth of what the watchdog
    waits for a heartbeat.

    config: `SinkContext.config`.
    """
    timeout_s = float(config.get("watchdog", {}).get("heartbeat_timeout_s", 10.0))
    return min(_MOST_LINGER_S, _LINGER_SHARE * timeout_s)


@dataclass(frozen=True)
class SinkPlugin:
    """What a sink module exports as `plugin` (entry point group `asys.sink`)."""

    name: str
    summary: str
    options: type[SinkOptions]
    build: Callable[[SinkOptions], BaseSink]
    default_delivery: Delivery
    preload: tuple[str, ...] = ()
    """Modules the fork server imports so that a restart is quick."""
    partition: bool = False
    """Several workers each take their own hooks (trainer) instead of sharing a group's packets."""
    trains_saes: bool = False
    """Its workers train the SAEs of `SinkOptions.planned_saes`, and resume them after a restart. Its
    options have the fields `sae`, `overrides`, `variants`, `transcoders` and `plain_saes` of
    `sae_trainer`, as far as it has such."""
    takes_labels: bool = False
    """Each of its workers gets the stream of labels (`contracts.labels`), whatever hooks it has."""
    takes_tokens: bool = False
    """Each of its workers gets the stream of tokens, whatever hooks it has."""
    once: bool = False
    """A run has one sink of this kind at the most."""
    unavailable: Callable[[], str | None] = lambda: None
