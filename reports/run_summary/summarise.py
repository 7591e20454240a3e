"""`summarise`: a run's last reading and what its host returned -> `RunSummary`. No I/O.

It reads the page's memory and nothing else; files come in as a list (`files.list_files`).
"""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.host import HostResult
from asys_bench.contracts.names import SIDE_STREAMS
from asys_bench.contracts.run_files import METRICS_FILE, TENSORBOARD_DIR
from asys_bench.contracts.stats import StatsPage, WorkerState
from asys_bench.monitors.figures import (
    HookFigures,
    HostFigures,
    RunFigures,
    SaeFigures,
    figures_of,
)
from asys_bench.monitors.rates import quantiles
from asys_bench.monitors.readable import path_text, reasons_text
from asys_bench.monitors.snapshot import take_snapshot
from asys_bench.reports.run_summary.summary import (
    ArchiveSummary,
    AttemptSummary,
    BusSummary,
    DeletedSummary,
    FileEntry,
    GroupSummary,
    HookSummary,
    HostSummary,
    NextStep,
    RankSummary,
    RunSummary,
    SaeSummary,
    WorkerSummary,
)

# What to type next, found from the files that are there. Every command can be pasted in a shell.

NEEDS = ("starlette", "uvicorn")
"""Of the eyepiece."""
SAE_CONFIG, SAE_WEIGHTS = "cfg.json", "sae_weights.safetensors"
"""The two files of a folder that SAELens loads."""
SHARD_SUFFIXES = (".arrow", ".arrows")
"""Arrow IPC streams."""


def next_steps(run_dir: Path, files: Sequence[FileEntry]) -> tuple[NextStep, ...]:
    """Commands for what this run has written, by packages that are installed; maybe none."""
    written = [PurePosixPath(entry.path) for entry in files if entry.nbytes]
    paths = [path for path in written if not any(part.startswith(".") for part in path.parts)]
    steps = []
    if _installed("tensorboard") and any(path.parts[0] == TENSORBOARD_DIR for path in paths):
        command = f"tensorboard --logdir {shlex.quote(str(run_dir / TENSORBOARD_DIR))}"
        steps.append(NextStep("watch the curves", command))
    if _installed("sae_lens") and (sae := _newest_sae(paths)) is not None:
        code = (
            f"from sae_lens import SAE; sae = SAE.load_from_disk({str(run_dir / sae)!r}); "
            "print(sae.cfg)"
        )
        steps.append(NextStep("load an SAE with SAELens", _python(code)))
    shards = [
        path for path in paths
        if path.suffix in SHARD_SUFFIXES and path.parent.name not in SIDE_STREAMS
    ]  # fmt: skip
    if shards and _installed("datasets"):
        code = (
            f"from datasets import Dataset; d = Dataset.from_file({str(run_dir / shards[0])!r}); "
            "print(d)"
        )
        steps.append(NextStep("open the archive with datasets", _python(code)))
    if _installed("pandas") and any(str(path) == METRICS_FILE for path in paths):
        code = (
            f"import pandas; d = pandas.read_csv({str(run_dir / METRICS_FILE)!r}); "
            "print(d[d.metric == 'sae_fvu'].pivot_table('value', 'time_s', 'hook'))"
        )
        steps.append(NextStep("read the metrics with pandas", _python(code)))
    if _newest_sae(paths) is not None and all(_installed(name) for name in NEEDS):
        command = f"{_own_program('asys-run')} eye {shlex.quote(str(run_dir))}"
        steps.append(
            NextStep("every feature in the browser: search, notes, what it fires on", command)
        )
    return tuple(steps)


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _own_program(name: str) -> str:
    """As a shell finds it: beside this Python, where that environment is not activated."""
    beside = Path(sys.executable or name).with_name(name)
    return name if shutil.which(name) or not beside.exists() else shlex.quote(path_text(beside))


def _python(code: str) -> str:
    # Double quotes outside keep the code's own quotes as they are; only these characters are
    # special between them, and `!` (history) must not appear at all.
    if any(c in code for c in '"$`\\!'):
        return f"python -c {shlex.quote(code)}"
    return f'python -c "{code}"'


def _newest_sae(paths: Sequence[PurePosixPath]) -> PurePosixPath | None:
    """The last folder, by name, with both SAELens files (checkpoints are numbered)."""
    configs = {path.parent for path in paths if path.name == SAE_CONFIG}
    weights = {path.parent for path in paths if path.name == SAE_WEIGHTS}
    return max(configs & weights, default=None)


WATCHDOG = "watchdog"


def summarise(
    page: StatsPage,
    account: Callable[[], BusAccount] | BusAccount | None,
    host_result: HostResult | None,
    files: Sequence[FileEntry],
    *,
    run_id: str,
    run_dir: Path,
    step_unit: str = "step",
    outcome: str | None = None,
    elapsed_s: float | None = None,
    configured_l0: Mapping[str, float] | None = None,
    notices: Sequence[str] = (),
    worker_messages: Mapping[str, Sequence[str]] | None = None,
    devices: Mapping[str, str] | None = None,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> RunSummary:
    """The summary of a run whose workers have stopped.

    Args:
        account: the bus's counters; None (or a bus that is gone) leaves the bus unknown.
        host_result: None when the host did not return (it failed).
        outcome: by default "finished" or "interrupted", by what the host said.
        elapsed_s: wall time of the whole run, start-up and draining included.
        configured_l0: hook -> k, to show beside the measured L0.
        notices: what the host's side has said (`capture.notices`).
        worker_messages: worker -> the warnings and errors in its log.
        devices: worker -> what it computed on, where that was a question.
        attempts: entries of run.json, this one's last.
    """
    figures = figures_of(take_snapshot(page, account))
    if outcome is None:
        early = host_result is None or host_result.stopped_early
        outcome = "interrupted" if early else "finished"
    targets = configured_l0 or {}
    order = {hook.hook: index for index, hook in enumerate(figures.hooks)}
    saes = sorted(figures.saes, key=lambda s: (order.get(s.hook, len(order)), s.worker))
    bus = _bus(figures.account)
    return RunSummary(
        run_id=run_id,
        run_dir=str(run_dir),
        outcome=outcome,
        elapsed_s=elapsed_s,
        host=_host(figures.host, host_result, step_unit),
        bus=bus,
        hooks=tuple(_hook(hook) for hook in figures.hooks),
        saes=tuple(_sae(sae, targets.get(sae.hook)) for sae in saes),
        archives=tuple(
            ArchiveSummary(a.hook, a.rows, a.packets, a.nbytes, a.shards) for a in figures.archives
        ),
        archive_deleted=tuple(
            DeletedSummary(one.reason, one.shards, one.rows, one.packets, one.bytes)
            for one in figures.archive_deleted
        ),
        workers=tuple(
            WorkerSummary(w.name, w.state.name.lower(), w.restarts, (devices or {}).get(w.name, ""))
            for w in figures.workers
            if w.state is not WorkerState.EMPTY
        ),
        ranks=tuple(RankSummary(r.name, r.state.name.lower(), r.steps) for r in figures.ranks),
        attempts=tuple(map(_attempt, attempts)) if len(attempts) > 1 else (),
        files=tuple(files),
        next_steps=next_steps(run_dir, files),
        warnings=tuple(_warnings(figures, bus, notices, worker_messages or {})),
    )


def _attempt(entry: Mapping[str, Any]) -> AttemptSummary:
    account = entry.get("account")
    groups = account.get("groups") if account is not None else None
    balanced = None
    if isinstance(groups, list):
        balanced = all(isinstance(one, dict) and one.get("imbalance") == 0 for one in groups)
    end = entry.get("end")
    return AttemptSummary(
        attempt=entry["attempt"],
        end=None if end is None else str(end),
        first_step=entry.get("first_step"),
        last_step=entry.get("last_step"),
        packets=account["produced"] if account is not None else None,
        balanced=balanced,
    )


def known(value: float) -> float | None:
    """None for NaN and infinity, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def _host(figures: HostFigures, result: HostResult | None, step_unit: str) -> HostSummary:
    told = {**(figures.reported or {}), **(result.figures if result else {})}
    steps = result.steps if result else figures.steps
    seconds = result.seconds if result else 0.0
    return HostSummary(
        steps=steps,
        step_unit=step_unit,
        seconds=seconds,
        steps_per_s=steps / seconds if seconds > 0 else None,
        stopped_early=result.stopped_early if result else True,
        weights_version=figures.weights_version,
        figures={name: known(value) for name, value in told.items()},
    )


def _bus(account: BusAccount | None) -> BusSummary | None:
    if account is None:
        return None
    return BusSummary(
        produced=account.produced,
        produced_bytes=account.produced_bytes,
        dropped={str(reason): n for reason, n in account.dropped.items()},
        groups=tuple(
            GroupSummary(
                group=g.group,
                delivered=g.delivered,
                lost_in_flight=g.lost_in_flight,
                dead_lettered=g.dead_lettered,
                redelivered=g.redelivered,
                ready=g.ready,
                missed=g.missed,
                imbalance=account.imbalance(g),
            )
            for g in account.groups
        ),
    )


def _hook(hook: HookFigures) -> HookSummary:
    latency_us = quantiles(hook.latency_ns, 1e-3)
    return HookSummary(
        hook=hook.hook,
        calls=hook.calls,
        captured=hook.captured,
        sampled_out=hook.sampled_out,
        dropped=hook.dropped,
        failed=hook.failed,
        captured_bytes=hook.nbytes,
        final_sampling_rate=known(hook.sampling_rate),
        latency_p50_us=known(latency_us.p50),
        latency_p90_us=known(latency_us.p90),
        latency_p99_us=known(latency_us.p99),
        latency_max_us=known(latency_us.max),
    )


def _sae(sae: SaeFigures, target: float | None) -> SaeSummary:
    return SaeSummary(
        hook=sae.hook,
        worker=sae.worker,
        rows=sae.rows,
        rows_trained=sae.rows_trained,
        steps=sae.steps,
        checkpoints=sae.checkpoints,
        nonfinite_rows=sae.nonfinite_rows,
        loss=known(sae.loss),
        fvu=known(sae.fvu),
        l0=known(sae.l0),
        configured_l0=target,
        dead_ratio=known(sae.dead_ratio),
        dense_ratio=known(sae.dense_ratio),
        fvu_all=known(sae.fvu_all),
        outlier_rows=sae.outlier_rows,
        outlier_norm=known(sae.outlier_norm),
    )


def _warnings(
    figures: RunFigures,
    bus: BusSummary | None,
    notices: Sequence[str],
    worker_messages: Mapping[str, Sequence[str]],
) -> Iterable[str]:
    """What a person should look into, worst first."""
    if bus is None:
        yield "the bus's counters could not be read: packets are not accounted for"
    for group in bus.groups if bus else ():
        if group.imbalance:
            yield f"group {group.group!r}: {group.imbalance:+,} packets are not accounted for"
    for name, said in worker_messages.items():
        if name != WATCHDOG:
            yield from (f"{name}: {message}" for message in said)
    captured = {hook.hook for hook in figures.hooks if hook.captured}
    for sae in figures.saes:
        told = any("never" in message for message in worker_messages.get(sae.worker, ()))
        if sae.steps == 0 and sae.hook in captured and not told:
            yield f"SAE {sae.hook!r} never finished a step of its training"
    yield from notices
    supervised = worker_messages.get(WATCHDOG, ())
    yield from (f"{WATCHDOG}: {message}" for message in supervised)
    for worker in figures.workers:
        if worker.state in (WorkerState.QUARANTINED, WorkerState.FAILED):
            is_told = worker_messages.get(worker.name) or any(
                worker.name in text for text in supervised
            )
            silent = "" if is_told else "; it said nothing"
            yield f"worker {worker.name!r} ended {worker.state.name.lower()}{silent}"
    for group in bus.groups if bus else ():
        if group.ready:
            yield f"group {group.group!r}: {group.ready:,} packets were left unread"
        if group.dead_lettered:
            yield f"group {group.group!r}: {group.dead_lettered:,} packets were given up on"
    for remote in figures.remotes:
        # What another forwarder sends is nobody's loss.
        lost = {reason: n for reason, n in remote.dropped.items() if reason != "elsewhere"}
        if lost:
            yield (
                f"{remote.worker}: {sum(lost.values()):,} of {remote.taken:,} packets did not reach a "
                f"receiver ({reasons_text(lost)})"
            )
    if figures.archive_dropped_packets:
        yield f"the disk refused {figures.archive_dropped_packets:,} packets of the archive"
    if figures.checkpoint_failures:
        yield f"{figures.checkpoint_failures:,} SAE checkpoints could not be written"
    if figures.archive_write_errors:
        yield f"the archive had {figures.archive_write_errors:,} write errors"
    for hook in figures.hooks:
        if hook.failed:
            yield f"hook {hook.hook!r} failed {hook.failed:,} times"
    for sae in figures.saes:
        if sae.nonfinite_rows:
            yield f"SAE {sae.hook!r}: {sae.nonfinite_rows:,} rows were NaN or infinite, not trained on"
