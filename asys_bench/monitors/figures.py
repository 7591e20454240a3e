"""What a reading means: the host's, each hook's, each SAE's, the archive's and each worker's figures.

The one place that knows the metric names of hosts, hooks, trainers and archivers; the live view, the
plain lines, TensorBoard and the run's summary all work on these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.stats import HistogramSnapshot, RunState, WorkerState
from asys_bench.monitors.rates import merge
from asys_bench.monitors.snapshot import MetricKey, RunSnapshot, SlotSnapshot

HOST_SLOT = "host"
_RANK_SLOT = re.compile(r"host-\d+")
NAN = float("nan")


_DELETED = "archive_deleted_"


@dataclass(frozen=True, slots=True)
class HostFigures:
    steps: int = 0
    weights_version: int = 0
    reported: Mapping[str, float] | None = None
    """What the host reported of itself, e.g. {"reward_mean": 143.2}."""


@dataclass(frozen=True, slots=True)
class RankFigures:
    """A host beside the first one: another rank of the node."""

    name: str
    state: WorkerState
    pid: int
    steps: int


@dataclass(frozen=True, slots=True)
class HookFigures:
    """One hook over all ranks: sums, the lowest sampling rate, all latencies together."""

    hook: str
    calls: int
    captured: int
    sampled_out: int
    dropped: int
    failed: int
    nbytes: int
    sampling_rate: float
    latency_ns: HistogramSnapshot


@dataclass(frozen=True, slots=True)
class SaeFigures:
    worker: str
    hook: str
    rows: int
    rows_trained: int
    steps: int
    checkpoints: int
    nonfinite_rows: int
    loss: float
    fvu: float
    l0: float
    dead_ratio: float
    dense_ratio: float
    fvu_all: float
    outlier_rows: int
    outlier_norm: float


@dataclass(frozen=True, slots=True)
class ArchiveFigures:
    """One hook's archive, over all archive workers."""

    hook: str
    rows: int
    packets: int
    nbytes: int
    shards: int


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    name: str
    state: WorkerState
    pid: int
    restarts: int
    heartbeat_age_s: float

    @property
    def is_service(self) -> bool:
        """A process of our own that consumes no packets: the watchdog or a monitor."""
        return self.name == "watchdog" or self.name.split("-")[0] == "monitor"


@dataclass(frozen=True, slots=True)
class DeletedFigures:
    """What archivers deleted in this attempt for one reason, over all hooks and workers."""

    reason: str
    shards: int
    rows: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RemoteFigures:
    """A forwarder: what left this machine. taken = acked + dropped + in_flight at every quiet moment."""

    worker: str
    taken: int
    acked: int
    dropped: Mapping[str, int]
    in_flight: int
    in_flight_bytes: float
    credit_bytes: float
    connected: bool
    unacknowledged_s: float
    connections: int
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ReceiverFigures:
    """The receiver that is this run's host: what came from other machines."""

    accepted: int
    accepted_bytes: int
    duplicates: int
    in_doubt: int
    expired: int
    connections: int
    window: int
    credit_bytes: float
    lag_s: float
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunFigures:
    time_ns: int
    state: RunState
    host: HostFigures
    hooks: tuple[HookFigures, ...]
    saes: tuple[SaeFigures, ...]
    archives: tuple[ArchiveFigures, ...]
    workers: tuple[WorkerFigures, ...]
    """Processes of ours; the ranks that are observed are `ranks`."""
    account: BusAccount | None
    archive_duplicates_skipped: int = 0
    archive_write_errors: int = 0
    archive_dropped_packets: int = 0
    archive_deleted: tuple[DeletedFigures, ...] = ()
    checkpoint_failures: int = 0
    ranks: tuple[RankFigures, ...] = ()
    """Hosts beside `host`, those that have joined."""
    remotes: tuple[RemoteFigures, ...] = ()
    receiver: ReceiverFigures | None = None

    def hook(self, name: str) -> HookFigures | None:
        return next((h for h in self.hooks if h.hook == name), None)

    def sae(self, worker: str, hook: str) -> SaeFigures | None:
        return next((s for s in self.saes if s.worker == worker and s.hook == hook), None)


def is_host(slot: str) -> bool:
    """The slot is a host's: `host`, or `host-<n>` of another rank of the node."""
    return slot == HOST_SLOT or _RANK_SLOT.fullmatch(slot) is not None


def figures_of(snapshot: RunSnapshot) -> RunFigures:
    """Figures of one reading; metrics that no process has published yet are 0 or NaN."""
    host = snapshot.slots.get(HOST_SLOT)
    hosts = [slot for name, slot in snapshot.slots.items() if is_host(name)]
    others = [slot for name, slot in snapshot.slots.items() if not is_host(name)]
    hooks = dict.fromkeys(hook for slot in hosts for hook in _labelled(slot, "hook_"))
    return RunFigures(
        time_ns=snapshot.time_ns,
        state=snapshot.state,
        host=_host(host) if host else HostFigures(reported={}),
        hooks=tuple(_hook(hosts, hook) for hook in hooks),
        saes=tuple(_sae(slot, hook) for slot in others for hook in _labelled(slot, "sae_")),
        archives=_archives(others),
        workers=tuple(
            WorkerFigures(s.name, s.state, s.pid, s.restarts, s.heartbeat_age_s) for s in others
        ),
        account=snapshot.account,
        archive_duplicates_skipped=_sum(others, "archive_duplicates_skipped"),
        archive_write_errors=_sum(others, "archive_write_errors"),
        archive_dropped_packets=_sum(others, "archive_dropped_packets"),
        archive_deleted=_deleted(others),
        checkpoint_failures=_sum(others, "sae_checkpoint_failures"),
        ranks=tuple(
            RankFigures(slot.name, slot.state, slot.pid, _host(slot).steps)
            for slot in hosts
            if slot.name != HOST_SLOT and slot.state is not WorkerState.EMPTY
        ),
        remotes=tuple(
            _remote(slot) for slot in others if MetricKey("remote_taken") in slot.counters
        ),
        receiver=_receiver(host) if host else None,
    )


def _sum(slots: list[SlotSnapshot], name: str, hook: str | None = None) -> int:
    """A counter over all slots: of one hook, or whatever its labels are."""
    return sum(
        value
        for slot in slots
        for key, value in slot.counters.items()
        if key.name == name and (hook is None or key.label("hook") == hook)
    )


def _labelled(slot: SlotSnapshot, prefix: str) -> list[str]:
    """Hooks that have a metric whose name starts with `prefix`, in order of appearance."""
    keys = [*slot.counters, *slot.gauges, *slot.histograms]
    found = (key.label("hook") for key in keys if key.name.startswith(prefix))
    return list(dict.fromkeys(hook for hook in found if hook))


def _host(slot: SlotSnapshot) -> HostFigures:
    reported = {
        key.name.removeprefix("host_"): value
        for key, value in slot.gauges.items()
        if key.name.startswith("host_") and not key.labels
    }
    return HostFigures(
        slot.counters.get(MetricKey("host_steps"), 0),
        slot.counters.get(MetricKey("weights_version"), 0),
        reported,
    )


def _key(name: str, hook: str) -> MetricKey:
    return MetricKey(name, (("hook", hook),))


def _hook(hosts: list[SlotSnapshot], hook: str) -> HookFigures:
    def count(name: str) -> int:
        return sum(slot.counters.get(_key(name, hook), 0) for slot in hosts)

    rates = [slot.gauges.get(_key("hook_sampling_rate", hook), NAN) for slot in hosts]
    latencies = [slot.histograms.get(_key("hook_latency_ns", hook)) for slot in hosts]
    return HookFigures(
        hook=hook,
        calls=count("hook_calls"),
        captured=count("hook_captured"),
        sampled_out=count("hook_sampled_out"),
        dropped=count("hook_dropped"),
        failed=count("hook_failed"),
        nbytes=count("hook_bytes"),
        sampling_rate=min((rate for rate in rates if not math.isnan(rate)), default=NAN),
        latency_ns=merge(found for found in latencies if found is not None),
    )


def _sae(slot: SlotSnapshot, hook: str) -> SaeFigures:
    def count(name: str) -> int:
        return slot.counters.get(_key(name, hook), 0)

    def gauge(name: str) -> float:
        return slot.gauges.get(_key(name, hook), NAN)

    return SaeFigures(
        worker=slot.name,
        hook=hook,
        rows=count("sae_rows"),
        rows_trained=count("sae_rows_trained"),
        steps=count("sae_steps"),
        checkpoints=count("sae_checkpoints"),
        nonfinite_rows=count("sae_nonfinite_rows"),
        loss=gauge("sae_loss"),
        fvu=gauge("sae_fvu"),
        fvu_all=gauge("sae_fvu_all"),
        outlier_rows=count("sae_outlier_rows"),
        outlier_norm=gauge("sae_outlier_norm"),
        l0=gauge("sae_l0"),
        dead_ratio=gauge("sae_dead_ratio"),
        dense_ratio=gauge("sae_dense_ratio"),
    )


def _by_reason(slot: SlotSnapshot, name: str) -> dict[str, int]:
    return {
        key.label("reason"): value
        for key, value in slot.counters.items()
        if key.name == name and value
    }


def _remote(slot: SlotSnapshot) -> RemoteFigures:
    counts = {key.name: value for key, value in slot.counters.items() if not key.labels}
    gauges = {key.name: value for key, value in slot.gauges.items() if not key.labels}
    in_flight = gauges.get("remote_in_flight", NAN)
    return RemoteFigures(
        worker=slot.name,
        taken=counts.get("remote_taken", 0),
        acked=counts.get("remote_acked", 0),
        dropped=_by_reason(slot, "remote_dropped"),
        in_flight=0 if math.isnan(in_flight) else int(in_flight),
        in_flight_bytes=gauges.get("remote_in_flight_bytes", NAN),
        credit_bytes=gauges.get("remote_credit_bytes", NAN),
        connected=gauges.get("remote_connected", 0.0) == 1.0,
        unacknowledged_s=gauges.get("remote_ack_s", NAN),
        connections=counts.get("remote_connections", 0),
        refused=_by_reason(slot, "remote_refused"),
    )


def _receiver(slot: SlotSnapshot) -> ReceiverFigures | None:
    counts = {key.name: value for key, value in slot.counters.items() if not key.labels}
    if "receiver_accepted" not in counts:
        return None
    gauges = {key.name: value for key, value in slot.gauges.items() if not key.labels}
    connections, window = (
        gauges.get(name, NAN) for name in ("receiver_connections", "receiver_window")
    )
    return ReceiverFigures(
        accepted=counts["receiver_accepted"],
        accepted_bytes=counts.get("receiver_accepted_bytes", 0),
        duplicates=counts.get("receiver_duplicates", 0),
        in_doubt=counts.get("receiver_in_doubt", 0),
        expired=counts.get("receiver_expired", 0),
        connections=0 if math.isnan(connections) else int(connections),
        window=0 if math.isnan(window) else int(window),
        credit_bytes=gauges.get("receiver_credit_bytes", NAN),
        lag_s=gauges.get("receiver_lag_s", NAN),
        refused=_by_reason(slot, "receiver_refused"),
    )


def _deleted(slots: list[SlotSnapshot]) -> tuple[DeletedFigures, ...]:
    totals: dict[str, dict[str, int]] = {}
    for slot in slots:
        for key, value in slot.counters.items():
            if key.name.startswith(_DELETED) and value:
                of = totals.setdefault(key.label("reason"), {})
                what = key.name.removeprefix(_DELETED)
                of[what] = of.get(what, 0) + value
    whats = ("shards", "rows", "packets", "bytes")
    return tuple(
        DeletedFigures(reason, *(totals[reason].get(what, 0) for what in whats))
        for reason in sorted(totals)
    )


def _archives(slots: list[SlotSnapshot]) -> tuple[ArchiveFigures, ...]:
    hooks = dict.fromkeys(hook for slot in slots for hook in _labelled(slot, "archive_"))
    return tuple(
        ArchiveFigures(
            hook,
            _sum(slots, "archive_rows", hook),
            _sum(slots, "archive_packets", hook),
            _sum(slots, "archive_bytes", hook),
            _sum(slots, "archive_shards", hook),
        )
        for hook in hooks
    )
