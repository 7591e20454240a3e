"""What a run is doing now, or what it came to, as one JSON document; followed through end, restart, resume.

A live run is read as `asys-run top` reads it: its stats page alone, so the run does not notice who watches.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from asys_bench.cluster.accounts import AccountError, read_forwarders
from asys_bench.contracts.reporter import ReportError
from asys_bench.contracts.run_files import SUMMARY_FILE, RunFileError, read_run_file
from asys_bench.contracts.stats import WorkerState
from asys_bench.monitors.figures import HookFigures, RunFigures, SaeFigures
from asys_bench.monitors.rates import per_second, quantiles, subtract
from asys_bench.monitors.readable import reported_first
from asys_bench.reports.run_summary.document import from_dict
from asys_bench.reports.run_summary.summary import RunSummary
from asys_bench.rundir.attach import AttachedRun, RunGoneError, attach_run
from asys_bench.rundir.live_reading import Reading, RunReader
from asys_bench.rundir.live_run import goes_on
from asys_bench.rundir.open_run import Run
from asys_bench.system.files.below import read_json

MOST_ALARMS = 50
Document = dict[str, Any]


def plain(value: float | None, digits: int = 4) -> float | None:
    """A number as JSON can say it: so many significant digits, None for what is not known."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


class RunWatch:
    """Of one run's folder. Not for several threads at once."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._attached: AttachedRun | None = None
        self._reader: RunReader | None = None

    def document(self) -> Document:
        """As it is now. A run that cannot be read says why under `problem`."""
        found = self._live()
        if found is None:
            found = self._ended()
        return {**found, "alarms": self.alarms(), "forwarders": self._forwarders()}

    def close(self) -> None:
        """Detach. Idempotent."""
        if self._attached is not None:
            self._attached.page.close()
        self._attached = self._reader = None

    def _live(self) -> Document | None:
        if self._reader is None:
            try:
                self._attached = attach_run(self._run_dir)
            except RunGoneError:
                return None
            self._reader = RunReader(self._attached)
        reading = self._reader.read()
        if reading.ended:
            self.close()
            return None
        return live_document(reading)

    def _ended(self) -> Document:
        try:
            run = read_run_file(self._run_dir)
        except RunFileError as error:
            return {"run_id": self._run_dir.name, "live": False, "problem": str(error)}
        basis: Document = {
            "run_id": str(run["run_id"]),
            "live": False,
            "unit": str(run.get("step_unit", "step")),
        }
        try:
            path = self._run_dir / SUMMARY_FILE
            return basis | summary_document(from_dict(read_json(path, below=self._run_dir)))
        except (OSError, ValueError, ReportError):
            going = goes_on(run)
            state = "another user's, or in another container" if going else "ended"
            why = "" if going else "it left no summary: it was killed, or is being gone on with"
            return basis | {"state": state, "problem": why}

    def alarms(self) -> list[Document]:
        """The newest ones."""
        found = []
        with suppress(OSError, ValueError):
            for alarm in Run(self._run_dir).alarms[-MOST_ALARMS:]:
                step, over = alarm.get("host_step"), alarm.get("over_host_step")
                ended = f"; over at step {over}" if isinstance(over, int) else ""
                found.append(
                    {
                        "step": step if isinstance(step, int) else None,
                        "text": str(alarm.get("text", alarm.get("watcher", "")))[:500] + ended,
                    }
                )
        return found

    def _forwarders(self) -> list[Document]:
        """What was sent to other machines, as each forwarder wrote it down last."""
        with suppress(AccountError, OSError):
            return [
                {
                    "worker": one.worker,
                    "receiver": one.receiver,
                    "taken": one.taken,
                    "acked": one.acked,
                    "in_flight": one.in_flight,
                    "dropped": dict(one.dropped),
                    "off": one.imbalance,
                }
                for one in read_forwarders(self._run_dir)
            ]
        return []


def live_document(reading: Reading) -> Document:
    """Of one reading; rates are over its last seconds."""
    model = reading.model
    now, before, seconds = model.now, model.before, model.seconds
    account = now.account
    found: Document = {
        "run_id": model.run_id,
        "live": True,
        "state": now.state.name.lower(),
        "problem": "",
        "unit": model.step_unit,
        "elapsed_s": plain(model.elapsed_s),
        "hook_share": plain(reading.hook_share),
        "host": {
            "steps": now.host.steps,
            "rate": plain(per_second(now.host.steps, before.host.steps, seconds)),
            "updates": now.host.weights_version,
            "reported": {name: plain(value) for name, value in reported_first(now)},
        },
        "ranks": _ranks(now, before, seconds),
        "hooks": [_hook(one, before.hook(one.hook) or one, seconds) for one in now.hooks],
        "saes": [_sae(one, before.sae(one.worker, one.hook) or one, seconds) for one in now.saes],
        "processes": _processes(reading),
        "remotes": [
            {
                "worker": one.worker,
                "connected": one.connected,
                "acked": one.acked,
                "in_flight": one.in_flight,
                "dropped": dict(one.dropped),
            }
            for one in now.remotes
        ],
        "receiver": _receiver(now),
        "warnings": _warnings(now),
    }
    if account is not None:
        earlier = before.account or account
        delivered = {group.group: group.delivered for group in earlier.groups}
        found["bus"] = {
            "produced": account.produced,
            "bytes": account.produced_bytes,
            "rate": plain(per_second(account.produced, earlier.produced, seconds)),
            "flow": plain(per_second(account.produced_bytes, earlier.produced_bytes, seconds)),
            "dropped": {str(reason): n for reason, n in account.dropped.items() if n},
        }
        found["groups"] = [
            {
                "group": one.group,
                "delivered": one.delivered,
                "rate": plain(
                    per_second(one.delivered, delivered.get(one.group, one.delivered), seconds)
                ),
                "ready": one.ready,
                "lost": one.lost_in_flight + one.dead_lettered,
                "missed": one.missed,
            }
            for one in account.groups
        ]
    return found


def _ranks(now: RunFigures, before: RunFigures, seconds: float) -> list[Document]:
    earlier = {rank.name: rank.steps for rank in before.ranks}
    return [
        {
            "name": one.name,
            "state": one.state.name.lower(),
            "steps": one.steps,
            "rate": plain(per_second(one.steps, earlier.get(one.name, one.steps), seconds)),
        }
        for one in now.ranks
    ]


def _hook(now: HookFigures, before: HookFigures, seconds: float) -> Document:
    lately = quantiles(subtract(now.latency_ns, before.latency_ns), 1e-3)
    if not lately.count:  # nothing in this window: what the whole run says
        lately = quantiles(now.latency_ns, 1e-3)
    return {
        "hook": now.hook,
        "captured": now.captured,
        "rate": plain(per_second(now.captured, before.captured, seconds)),
        "flow": plain(per_second(now.nbytes, before.nbytes, seconds)),
        "sampled_out": now.sampled_out,
        "sampling": plain(now.sampling_rate),
        "dropped": now.dropped,
        "failed": now.failed,
        "p50_us": plain(lately.p50),
        "p99_us": plain(lately.p99),
    }


def _sae(now: SaeFigures, before: SaeFigures, seconds: float) -> Document:
    return {
        "sae": now.hook,
        "worker": now.worker,
        "rows": now.rows,
        "rate": plain(per_second(now.rows, before.rows, seconds)),
        "steps": now.steps,
        **{name: plain(getattr(now, name)) for name in _SAE_FIGURES},
    }


_SAE_FIGURES = ("loss", "fvu", "l0", "dead_ratio", "dense_ratio")


def _processes(reading: Reading) -> list[Document]:
    slots = reading.snapshot.slots
    return [
        {
            "name": name,
            "state": slot.state.name.lower(),
            "pid": slot.pid,
            "restarts": slot.restarts,
            "heartbeat_s": plain(slot.heartbeat_age_s),
            "cpu": plain(reading.busy.get(name)),
            "memory": reading.memory.get(name),
        }
        for name, slot in slots.items()
        if slot.state is not WorkerState.EMPTY
    ]


def _receiver(now: RunFigures) -> Document | None:
    one = now.receiver
    if one is None:
        return None
    return {
        "connections": one.connections,
        "accepted": one.accepted,
        "duplicates": one.duplicates,
        "lag_s": plain(one.lag_s),
        "refused": dict(one.refused),
    }


def _warnings(now: RunFigures) -> list[str]:
    """What a person should look into, of a run that goes on."""
    bad = (WorkerState.FAILED, WorkerState.QUARANTINED)
    told = [f"{one.name} is {one.state.name.lower()}" for one in now.workers if one.state in bad]
    told += [f"hook {one.hook}: {one.failed:,} calls failed" for one in now.hooks if one.failed]
    if now.archive_write_errors:
        told.append(f"the archive could not be written {now.archive_write_errors:,} times")
    if now.checkpoint_failures:
        told.append(f"{now.checkpoint_failures:,} checkpoints could not be written")
    return told


def summary_document(summary: RunSummary) -> Document:
    """The same figures of a run that has ended, as its summary has them."""
    found: Document = {
        "state": summary.outcome,
        "problem": "",
        "elapsed_s": plain(summary.elapsed_s),
        "unit": summary.host.step_unit,
        "balanced": summary.balanced if summary.bus is not None else None,
        "host": {
            "steps": summary.host.steps,
            "rate": plain(summary.host.steps_per_s),
            "updates": summary.host.weights_version,
            "reported": {name: plain(value) for name, value in summary.host.figures.items()},
        },
        "ranks": [{"name": o.name, "state": o.state, "steps": o.steps} for o in summary.ranks],
        "hooks": [
            {
                "hook": one.hook,
                "captured": one.captured,
                "sampled_out": one.sampled_out,
                "sampling": plain(one.final_sampling_rate),
                "dropped": one.dropped,
                "failed": one.failed,
                "p50_us": plain(one.latency_p50_us),
                "p99_us": plain(one.latency_p99_us),
            }
            for one in summary.hooks
        ],
        "saes": [
            {
                "sae": one.hook,
                "worker": one.worker,
                "rows": one.rows,
                "steps": one.steps,
                **{name: plain(getattr(one, name)) for name in _SAE_FIGURES},
            }
            for one in summary.saes
        ],
        "processes": [
            {"name": one.name, "state": one.state, "restarts": one.restarts}
            for one in summary.workers
        ],
        "warnings": list(summary.warnings),
    }
    bus = summary.bus
    if bus is not None:
        found["bus"] = {
            "produced": bus.produced,
            "bytes": bus.produced_bytes,
            "dropped": {reason: n for reason, n in bus.dropped.items() if n},
        }
        found["groups"] = [_group(summary_group) for summary_group in bus.groups]
    return found


def _group(one: Any) -> Document:
    lost = one.lost_in_flight + one.dead_lettered
    return {
        "group": one.group,
        "delivered": one.delivered,
        "ready": one.ready,
        "lost": lost,
        "missed": one.missed,
        "off": one.imbalance,
    }
