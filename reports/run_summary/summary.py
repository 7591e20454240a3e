"""`RunSummary`: everything that a finished run says of itself. Plain data; None means unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from asys_bench.contracts.run_files import SUMMARY_SCHEMA


@dataclass(frozen=True, slots=True)
class HostSummary:
    steps: int
    step_unit: str
    seconds: float
    steps_per_s: float | None
    stopped_early: bool
    weights_version: int
    figures: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One consumer group's packets. `imbalance` is 0 when the identity holds."""

    group: str
    delivered: int
    lost_in_flight: int
    dead_lettered: int
    redelivered: int
    ready: int
    missed: int
    imbalance: int


@dataclass(frozen=True, slots=True)
class BusSummary:
    """``produced = delivered + dropped + lost_in_flight + dead_lettered + ready + missed``."""

    produced: int
    produced_bytes: int
    dropped: Mapping[str, int]
    groups: tuple[GroupSummary, ...]

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    @property
    def balanced(self) -> bool:
        """The identity holds for every group."""
        return all(group.imbalance == 0 for group in self.groups)


@dataclass(frozen=True, slots=True)
class HookSummary:
    hook: str
    calls: int
    captured: int
    sampled_out: int
    dropped: int
    failed: int
    captured_bytes: int
    final_sampling_rate: float | None
    latency_p50_us: float | None
    latency_p90_us: float | None
    latency_p99_us: float | None
    latency_max_us: float | None


@dataclass(frozen=True, slots=True)
class SaeSummary:
    """`configured_l0`: the k of a TopK SAE, when known; `fvu` is on held-out rows without outliers,
    `fvu_all` on all of them (outliers pass through the SAE unchanged)."""

    hook: str
    worker: str
    rows: int
    rows_trained: int
    steps: int
    checkpoints: int
    nonfinite_rows: int
    loss: float | None
    fvu: float | None
    l0: float | None
    configured_l0: float | None
    dead_ratio: float | None
    dense_ratio: float | None
    fvu_all: float | None = None
    outlier_rows: int = 0
    """Rows not trained on because of their norm."""
    outlier_norm: float | None = None
    """Norm above which a row is an outlier; None: none is."""


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    hook: str
    rows: int
    packets: int
    data_bytes: int
    shards: int


@dataclass(frozen=True, slots=True)
class DeletedSummary:
    """What the archive's limits took away again for one reason (budget, age, free_space), over all
    hooks."""

    reason: str
    shards: int
    rows: int
    packets: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerSummary:
    name: str
    state: str
    restarts: int
    device: str = ""
    """What it computed on; "" where that was no question."""


@dataclass(frozen=True, slots=True)
class RankSummary:
    """Another rank of the node, which was observed too."""

    name: str
    state: str
    steps: int


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """What run.json says of one attempt of a run that went on (`run.resume`)."""

    attempt: int
    end: str | None
    """`AttemptEnd`, or "killed"; None while it goes on."""
    first_step: int | None
    last_step: int | None
    packets: int | None
    """None where nobody was left to say it, as is `balanced`."""
    balanced: bool | None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the run's directory; `path` is relative to it."""

    path: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class NextStep:
    """A command to type, and what it does."""

    what: str
    command: str


@dataclass(frozen=True, slots=True)
class RunSummary:
    run_id: str
    run_dir: str
    outcome: str
    """"finished", "interrupted", or "failed: <why>"."""
    elapsed_s: float | None
    host: HostSummary
    bus: BusSummary | None
    """None when the bus's counters could not be read."""
    hooks: tuple[HookSummary, ...]
    saes: tuple[SaeSummary, ...]
    archives: tuple[ArchiveSummary, ...]
    workers: tuple[WorkerSummary, ...]
    files: tuple[FileEntry, ...]
    next_steps: tuple[NextStep, ...]
    warnings: tuple[str, ...] = ()
    ranks: tuple[RankSummary, ...] = ()
    """Ranks beside `host`'s."""
    attempts: tuple[AttemptSummary, ...] = ()
    """Of a run that went on: every one, this one last; all other figures are this one's."""
    archive_deleted: tuple[DeletedSummary, ...] = ()
    """By reason."""
    report: str = ""
    """Path of the report, where it is written already."""
    schema: str = field(default=SUMMARY_SCHEMA)

    @property
    def balanced(self) -> bool:
        """Every packet is accounted for, in every group."""
        return self.bus is not None and self.bus.balanced
