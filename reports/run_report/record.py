"""Everything a run left in its directory, read once. What is missing is empty, not an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asys_bench.cluster.accounts import (
    AccountError,
    ForwarderAccount,
    ReceiverAccount,
    read_forwarders,
    read_receiver,
)
from asys_bench.config.document import host_options, run_config_data
from asys_bench.contracts.reporter import ReportError
from asys_bench.contracts.run_files import (
    EVENTS_FILE,
    HISTOGRAMS_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    RunFileError,
    read_run_file,
)
from asys_bench.contracts.stats import HISTOGRAM_BUCKETS, HistogramSnapshot
from asys_bench.monitors.snapshot import parse_key
from asys_bench.reports.run_report.series import Metrics, read_metrics
from asys_bench.reports.run_summary.document import from_dict
from asys_bench.reports.run_summary.summary import RunSummary
from asys_bench.rundir.evaluation_documents import read_evaluations
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.probes import FoundProbe, read_probes
from asys_bench.system.files.below import parse_json, read_json, text_lines


@dataclass(frozen=True, slots=True)
class Event:
    """A line of monitor.log."""

    time_s: float
    level: str
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it."""

    path: Path
    run: Mapping[str, Any]
    """run.json."""
    config: Mapping[str, Any]
    summary: RunSummary | None
    """None while the run goes on, or when its host was killed."""
    metrics: Metrics
    events: tuple[Event, ...]
    latencies: Mapping[str, HistogramSnapshot]
    """Hook -> the whole run's latency in ns; empty for a run that did not end in order."""
    evaluations: tuple[Mapping[str, Any], ...] = ()
    """Documents of `rundir.evaluation_documents`, by SAE and age of the checkpoint."""
    probes: Mapping[str, Sequence[FoundProbe]] = field(default_factory=dict)
    """Hook -> its probes."""
    forwarders: tuple[ForwarderAccount, ...] = ()
    """What this run sent to other machines."""
    receiver: ReceiverAccount | None = None
    """What came from them, where the run's host is a receiver."""

    @property
    def run_id(self) -> str:
        return str(self.run.get("run_id", self.path.name))

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(map(str, self.run.get("hooks", ())))

    @property
    def saes(self) -> tuple[str, ...]:
        """Names of the SAEs: what metrics and summary say, and hooks, each once."""
        told = [key.hook for key in self.metrics.find("sae_steps")]
        told += [sae.hook for sae in self.summary.saes] if self.summary is not None else []
        order = {hook: index for index, hook in enumerate(self.hooks)}
        names = dict.fromkeys([*told, *self.hooks])

        def place(name: str) -> int:
            """Of the hook that it is called after, for the order alone."""
            called = [hook for hook in order if name == hook or name.startswith(f"{hook}#")]
            return order[max(called, key=len)] if called else len(order)

        return tuple(sorted(names, key=place))

    @property
    def step_unit(self) -> str:
        return str(self.run.get("step_unit", "step"))

    @property
    def environment_id(self) -> str:
        """The gymnasium environment of an RL host, or an empty string."""
        return str(host_options(self.config)[1].get("env_id", ""))


def read_run(path: Path) -> RunRecord:
    """Read a run's directory.

    Raises:
        ReportError: there is no run of a known schema.
    """
    try:
        run = read_run_file(path)
    except RunFileError as error:
        raise ReportError(str(error)) from error
    return RunRecord(
        path,
        run,
        run_config_data(path),
        _summary(path),
        read_metrics(path / METRICS_FILE),
        _events(path / EVENTS_FILE),
        _latencies(path / HISTOGRAMS_FILE),
        tuple(read_evaluations(path)),
        _probes(path),
        *_accounts(path),
    )


def _probes(path: Path) -> Mapping[str, Sequence[FoundProbe]]:
    try:
        return read_probes(path)
    except (ReadingError, OSError):
        return {}


def _accounts(path: Path) -> tuple[tuple[ForwarderAccount, ...], ReceiverAccount | None]:
    """What cannot be read is left out; `asys-run verify` names it."""
    forwarders: tuple[ForwarderAccount, ...] = ()
    receiver = None
    with suppress(AccountError, OSError):
        forwarders = read_forwarders(path)
    with suppress(AccountError, OSError):
        receiver = read_receiver(path)
    return forwarders, receiver


def _summary(path: Path) -> RunSummary | None:
    try:
        return from_dict(read_json(path / SUMMARY_FILE, below=path))
    except (OSError, ValueError):
        return None


def _events(path: Path) -> tuple[Event, ...]:
    found = []
    for line in text_lines(path, below=path.parent):
        try:
            data = parse_json(line)
            event = Event(
                float(data.pop("time_s")), str(data.pop("level", "")), str(data.pop("event")), data
            )
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
            continue  # the last line of a killed monitor
        found.append(event)
    return tuple(found)


def _latencies(path: Path) -> Mapping[str, HistogramSnapshot]:
    """Of the host's slot; see `monitors.snapshot`."""
    try:
        data = read_json(path, below=path.parent)
        found = {}
        for name, one in data["host"].items():
            key = parse_key(name)
            if key.name == "hook_latency_ns" and key.label("hook"):
                buckets = [0] * HISTOGRAM_BUCKETS
                for index, count in one["buckets"]:
                    buckets[int(index)] = int(count)
                found[key.label("hook")] = HistogramSnapshot(
                    sum(buckets), int(one["sum"]), int(one["max"]), tuple(buckets)
                )
        return found
    except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError):
        return {}
