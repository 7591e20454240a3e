"""chaos: a fault strikes a production pipeline; packets and seconds are counted.

The pipeline runs in a process of its own (`harness.faults`). What every round must show, whatever
the fault: the host finishes (unless it was killed) with the weights it would have had unobserved, and
in time; each packet is accounted for; the archive holds every packet that it took, apart from those
that are counted as dropped or that the fault itself tore off, and every row as the host made it; no
file is damaged; nobody's exception shows on the terminal; nothing is left behind. Where workers have
time to drain, the archive has taken every packet that the bus accepted (`unread_packets`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.contracts.stats import Counter, SlotField, WorkerState
from asys_bench.harness.faults.disk import archived_packets, changed_rows
from asys_bench.harness.faults.fault import ChaosOptions, Fault, Stage
from asys_bench.harness.faults.host_process import (
    HostTask,
    outcome_account,
    read_outcome,
    read_steps,
)
from asys_bench.harness.faults.observed import START_PATIENCE_S, ObservedRun
from asys_bench.harness.faults.signals import FAULTS
from asys_bench.harness.faults.twin import read_rows
from asys_bench.harness.scenarios.beside_run import count_packets
from asys_bench.rundir.verify import State, verify_run
from asys_bench.system.process_usage import process_usage

POLL_S = 0.001
LEAVE_PATIENCE_S = 10.0
FILES_PATIENCE_S = 2.0
TWIN_PATIENCE_S = 60.0
"""For the unobserved twin to be trained, beside the time that the run itself took."""
CLOSE_GRACE_S = 6.0
"""`close` takes this much longer than `run.drain_timeout_s` at most."""
UNSETTLED_NS = 1_000_000_000
"""Host steps count for `step_ms` from this long after a strike."""


class _Round:
    """One round, from the start of the host to the last count."""

    def __init__(self, context: RoundContext) -> None:
        options = context.options
        assert isinstance(options, ChaosOptions)
        self._context, self._options = context, options
        self._stage = Stage(context.scratch)
        self._fault: Fault = FAULTS[options.fault](options, context.seed)
        self._strikes_ns: list[int] = []
        self._started = time.monotonic()
        self._run: ObservedRun | None = None
        self._resident: list[list[float | None]] = []

    def run(self) -> None:
        try:
            self._fault.prepare(self._stage)
            self._run = run = self._start()
            with self._context.timed():
                timeout_s = self._context.config.watchdog.startup_timeout_s
                if run.attach(START_PATIENCE_S + timeout_s):
                    self._strike_all(run)
            self._finish(run)
        finally:
            if self._run is not None:
                self._run.close()
                self._keep(self._run)
            self._stage.clear()

    def _start(self) -> ObservedRun:
        context = self._context
        config, check = context.config.to_plain(), self._options.check_weights
        task = HostTask(str(context.scratch), config, check, self._options.record_steps)
        stage = self._stage
        return ObservedRun.start(task, stage.runs, stage.environment, stage.terminal)

    def _keep(self, run: ObservedRun) -> None:
        """Print what the run printed, and leave its directory where it was asked for."""
        print(self._stage.terminal.read_text(errors="replace"), file=sys.stderr)
        if self._options.keep is not None:
            kept = Path(self._options.keep)
            kept.mkdir(parents=True)
            shutil.copyfile(self._stage.terminal, kept / self._stage.terminal.name)
            shutil.move(run.run_dir, kept)

    def _strike_all(self, run: ObservedRun) -> None:
        options = self._options
        if run.live is not None:
            self._await(run, lambda: run.delivered(options.group) > 0, "the first packets")
        self._weigh(run)
        for _ in range(options.faults):
            time.sleep(self._fault.calm_s())
            if run.process.poll() is not None:
                return
            begin = self._strike(run)
            if self._fault.host_survives and options.await_recovery and run.live is not None:
                self._recover(run, begin)
        time.sleep(options.settle_s)
        self._weigh(run)

    def _weigh(self, run: ObservedRun) -> None:
        """Resident memory of host and watchdog, now; a watchdog that starts again has none yet."""
        if run.live is not None and self._fault.host_survives:
            found = process_usage(run.process.pid), process_usage(run.pid("watchdog"))
            self._resident.append([usage[1] / (1 << 20) if usage else None for usage in found])

    def _resident_pairs(self) -> Iterator[tuple[str, float, float]]:
        """Process, MiB before the first strike and after the last, where both are known."""
        if len(self._resident) == 2:
            for name, first, last in zip(("host", "watchdog"), *self._resident, strict=True):
                if first is not None and last is not None:
                    yield name, first, last

    def _strike(self, run: ObservedRun) -> int:
        """Returns the time from which recovery counts."""
        begin = time.monotonic_ns()
        if self._options.fault != "none":
            self._strikes_ns.append(begin)
        self._fault.inject(run)
        run.processes()
        if self._fault.lasts:
            time.sleep(self._fault.hold_s())
            begin = time.monotonic_ns()
            self._fault.lift(run)
            self._strikes_ns.append(begin)
        return begin

    def _recover(self, run: ObservedRun, begin_ns: int) -> None:
        self._await(run, lambda: self._fault.recovered(run), "a successor")
        before = run.delivered(self._options.group)
        self._await(run, lambda: run.delivered(self._options.group) > before, "packets")
        if self._options.fault != "none":
            self._context.recorder("recovery_ms").record(time.monotonic_ns() - begin_ns)

    def _await(self, run: ObservedRun, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._options.patience_s
        while not condition():
            if run.process.poll() is not None:
                raise ScenarioError(f"the host ended while {what} were awaited")
            if time.monotonic() > deadline:
                raise ScenarioError(
                    f"{self._options.fault} of {self._options.worker}: {what} did not come in "
                    f"{self._options.patience_s:g} s"
                )
            time.sleep(POLL_S)

    def _finish(self, run: ObservedRun) -> None:
        context, survives = self._context, self._fault.host_survives
        run.processes()
        run.stop_host()
        took_s = time.monotonic() - self._started
        limit_s = context.config.run.drain_timeout_s + CLOSE_GRACE_S
        try:
            run.process.wait(limit_s + self._options.patience_s + TWIN_PATIENCE_S + took_s)
        except subprocess.TimeoutExpired:
            context.count("failed_hosts", 1, 1)
            return
        died_ns = time.monotonic_ns() if survives else self._strikes_ns[-1]
        left = run.wait_gone(LEAVE_PATIENCE_S)
        context.recorder("leave_ms").record(time.monotonic_ns() - died_ns)
        outcome = read_outcome(context.scratch) if survives else {}
        failed = survives and ("failure" in outcome or run.process.returncode != 0)
        if failed:
            print(f"the host failed: {outcome.get('failure')}", file=sys.stderr)
        context.count("failed_hosts", int(failed), 1)
        names = self._stage.left_behind(FILES_PATIENCE_S)
        if left or names:
            print(f"left behind: processes {left}, files {names}", file=sys.stderr)
        context.count(
            "left_behind",
            len(left) + len(names) + outcome.get("descriptors_left", 0),
            max(1, run.seen),
        )
        if "close_ns" in outcome:
            self._count_close(outcome["close_ns"])
        if "weights_unobserved" in outcome:
            changed = outcome["weights"] != outcome["weights_unobserved"]
            context.count("changed_weights", int(changed), 1)
        self._count_packets(run, outcome)
        self._count_files(run, outcome.get("orderly", False))
        self._count_restarts(run)
        self._count_quarantined(run)
        for name, first, last in self._resident_pairs():
            context.value(f"{name}_resident_mib", last)
            context.value(f"{name}_growth_mib", last - first)
        self._steps()

    def _count_close(self, close_ns: int) -> None:
        limit_s = self._context.config.run.drain_timeout_s + CLOSE_GRACE_S
        self._context.recorder("close_ms").record(close_ns)
        self._context.count("late_closes", int(close_ns > limit_s * 1e9), 1)

    def _count_files(self, run: ObservedRun, orderly: bool) -> None:
        """A writer whose successor did not come before the end may leave a torn one."""
        context = self._context
        context.count("changed_rows", *changed_rows(run.run_dir, read_rows(context.scratch)))
        findings = verify_run(run.run_dir).findings
        bad = (State.DAMAGED, State.TORN) if orderly else (State.DAMAGED,)
        damaged = [found for found in findings if found.state in bad]
        for found in damaged:
            print(f"{found.path}: {found.state}: {found.detail}", file=sys.stderr)
        context.count("damaged_files", len(damaged), len(findings))
        said = self._stage.terminal.read_text(errors="replace")
        context.count("tracebacks", said.count("Traceback"), 1)

    def _count_packets(self, run: ObservedRun, outcome: dict[str, Any]) -> None:
        account = outcome_account(outcome) or run.account()
        if account is None:
            return
        context, integrity = self._context, self._context.integrity
        unaccounted = count_packets(integrity, account)
        integrity.allowed_lost = integrity.lost  # what a killed reader held; at_least_once has none
        context.count("unaccounted_packets", unaccounted, account.produced * len(account.groups))
        context.value("dropped_ratio", account.dropped_total / max(1, account.produced))
        self._count_archive(run, account)

    def _count_archive(self, run: ObservedRun, account: BusAccount) -> None:
        archive = [g for g in account.groups if g.group == self._options.archive_group]
        if not archive:
            return
        group = archive[0]
        accepted = account.produced - account.dropped_total - group.missed
        given_up = sum(
            metric.value
            for name in run.others()
            for full, metric in run.slot(name).metrics().items()
            if full.startswith("archive_dropped_packets") and isinstance(metric, Counter)
        )
        held = archived_packets(run.run_dir)
        missing = group.delivered - given_up - self._fault.excused_packets() - held
        self._context.count("archive_missing_packets", max(0, missing), accepted)
        unread = group.ready + group.lost_in_flight + group.dead_lettered
        self._context.count("unread_packets", unread, accepted)

    def _count_restarts(self, run: ObservedRun) -> None:
        """Restarts, those that the fault does not call for apart; and who was given up."""
        if not self._fault.host_survives or run.live is None:
            return
        names = run.others()
        restarts = sum(run.slot(name).get(SlotField.RESTARTS) for name in names)
        word = "restarts" if self._fault.replaces else "needless_restarts"
        self._context.count(word, restarts, len(names))
        self._context.value("signals", run.sent)

    def _count_quarantined(self, run: ObservedRun) -> None:
        if run.live is None:
            return
        names = run.others()
        given_up = [name for name in names if run.slot(name).state is WorkerState.QUARANTINED]
        self._context.count("quarantined_workers", len(given_up), len(names))

    def _steps(self) -> None:
        begun, ended = read_steps(self._context.scratch)
        settled = np.ones(len(begun), dtype=bool)
        for strike in self._strikes_ns:
            settled &= (ended < strike) | (begun > strike + UNSETTLED_NS)
        self._context.recorder("step_ms").extend((ended - begun)[settled])


def run(context: RoundContext) -> None:
    """Start the host in its process, strike, let it finish, count."""
    _Round(context).run()


def _unavailable_for(options: ScenarioOptions) -> str | None:
    assert isinstance(options, ChaosOptions)
    return FAULTS[options.fault].unavailable(options)


def _count(summary: str) -> MetricSpec:
    return MetricSpec("lower", MetricKind.COUNT, summary)


plugin = ScenarioPlugin(
    name="chaos",
    summary="a fault strikes the production pipeline: " + ", ".join(FAULTS),
    options=ChaosOptions,
    takes="pipeline",
    metrics={
        "recovery_ms": MetricSpec(
            "lower", MetricKind.SAMPLES, "strike (or the fault's end) to consuming again"
        ),
        "leave_ms": MetricSpec("lower", MetricKind.SAMPLES, "host's end to its last process gone"),
        "step_ms": MetricSpec(
            "lower", MetricKind.SAMPLES, "host step, from 1 s after each strike on"
        ),
        "close_ms": MetricSpec("lower", MetricKind.SAMPLES, "draining, writing and ending it all"),
        "dropped_ratio": MetricSpec("lower", MetricKind.ROUND, "refused by a full bus, of offered"),
        "failed_hosts": _count("hosts that raised, hung or died when nobody killed them"),
        "changed_weights": _count("hosts whose weights differ from those of an unobserved run"),
        "unaccounted_packets": _count("what the accounting identity does not explain"),
        "archive_missing_packets": _count(
            "taken by the archive, not counted as dropped, not in it"
        ),
        "changed_rows": _count("archived rows that are not bit by bit those of an unobserved run"),
        "damaged_files": _count("files of the run that `asys-run verify` finds torn or damaged"),
        "tracebacks": _count("exceptions that show on the terminal"),
        "late_closes": _count("ends that took longer than run.drain_timeout_s and 6 s"),
        "unread_packets": _count("accepted, and not taken by the archive before the run ended"),
        "needless_restarts": _count("restarts under a fault that calls for none"),
        "restarts": _count("processes that were started again"),
        "signals": MetricSpec("lower", MetricKind.ROUND, "how many were sent"),
        "quarantined_workers": _count("workers, or the watchdog, given up in the end"),
        "host_resident_mib": MetricSpec("lower", MetricKind.ROUND, "the host's memory at the end"),
        "host_growth_mib": MetricSpec(
            "lower", MetricKind.ROUND, "of that, since before the strikes"
        ),
        "watchdog_resident_mib": MetricSpec("lower", MetricKind.ROUND, "the watchdog's at the end"),
        "watchdog_growth_mib": MetricSpec(
            "lower", MetricKind.ROUND, "of that, more than the watchdog's before the strikes"
        ),
        "left_behind": _count(
            "processes, descriptors, and names in /dev/shm and TMPDIR that stayed"
        ),
    },
    run=run,
    unavailable_for=_unavailable_for,
)
