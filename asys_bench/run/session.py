"""One observation of one model: bus, stats page, workers and hooks, from start to drained end.

`RunLifecycle` starts and ends it, for `asys-run`'s hosts and for `observe()`.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

import torch

from asys_bench.capture.hook_stream import HookStream
from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.notices import Notices
from asys_bench.capture.points.hookpoints import HookError, HookPoint
from asys_bench.capture.raised_sampling import RaisedSampling
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config.assembly import AssemblyError, create_data_bus, plan_workers
from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.bus import BaseDataBus, BusAccount, GroupSpec
from asys_bench.contracts.host import Feed
from asys_bench.contracts.launch import LaunchSpec, WorkerSpec
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.run_files import (
    HISTOGRAMS_FILE,
    PLAN_FILE,
    RUN_FILE,
    RUN_SCHEMA,
    began_unix_ns,
)
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.contracts.stats import (
    SLOT_BYTES,
    RunState,
    StatsPage,
    WorkerState,
    slot_bytes,
)
from asys_bench.monitors.figures import figures_of
from asys_bench.monitors.snapshot import histograms, take_snapshot
from asys_bench.placement.manager import ResourceManager
from asys_bench.placement.plan import WATCHDOG
from asys_bench.registry import registry
from asys_bench.run.attempts import NOTHING_BEFORE, AttemptEnd, Continuation, new_entry, steps_of
from asys_bench.run.eyepiece import start_eyepiece
from asys_bench.run.forecast import RunForecast, SaeForecast, shortage
from asys_bench.run.rank_session import SessionEnd, wait_for_ranks
from asys_bench.run.run_dir import RunDir, environment
from asys_bench.run.streams import Streams, Told, coin_keys, fed_streams, plan_streams
from asys_bench.run.trackers import host_trackers
from asys_bench.rundir.live_run import descriptor_paths
from asys_bench.system.launcher import LocalRanks
from asys_bench.system.process import start_time
from asys_bench.system.standard_fds import standard_fds_taken
from asys_bench.workers.supervisor import Supervisor
from asys_bench.workers.trainer_manager import SAETrainerManager
from asys_bench.workers.worker_log import messages_of

log = logging.getLogger(__name__)
METRICS_PER_HOOK = 24
"""Room in the stats page for counters and gauges of a hook, beside its latency histogram."""
METRICS_PER_LABEL = 48
"""And of what a worker counts for, such as an SAE."""


class ObservationSession:
    """Starts everything around `model`; see the module docstring.

    terminal: a monitor may draw on standard output.
    resources: where the run's processes go; None leaves it to the scheduler.
    ranks: this process is local rank 0 of these, and the others push to the same bus.
    told: what they hook, where that differs (`streams.hooks_differ`).
    model: None: the host pushes packets itself, those of `feed`.
    root: what the user calls, where that is a wrapper around `model` (DistributedDataParallel).
    one_call_per_step: as `BaseHost.one_call_per_step`.
    on_misfit: called in the host's hook when an SAE cannot be trained on what its module makes; what
        it raises goes to the host.
    on_width: called in the host's hook with a hook's width and SAEs when its first tensor comes.
    on_eye: given the address of the eyepiece (`run.eye`) in a thread; None: there is to be none.
    first_step: number of the step that the host is in at the start.
    goes_on_from: what is counted on from the attempts before.
    """

    @standard_fds_taken()
    def __init__(
        self,
        config: MasterConfig,
        model: torch.nn.Module | None,
        run_dir: RunDir,
        *,
        feed: Feed | None = None,
        step_unit: str = "step",
        terminal: bool = False,
        resources: ResourceManager | None = None,
        ranks: LocalRanks | None = None,
        told: Sequence[Told] = (),
        root: torch.nn.Module | None = None,
        one_call_per_step: bool = False,
        on_misfit: Callable[[], None] | None = None,
        on_width: Callable[[str, int, Sequence[SaeForecast]], None] | None = None,
        on_eye: Callable[[str], None] | None = None,
        first_step: int = 0,
        goes_on_from: Continuation = NOTHING_BEFORE,
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.notices = Notices()
        self.misfits: list[str] = []
        """SAEs that cannot be trained on what their module makes; found at its first call."""
        self._on_misfit, self._on_width, self._on_eye = on_misfit, on_width, on_eye
        self._short = False
        self._resources = resources
        self._ranks = ranks
        local = ranks.local_world_size if ranks is not None else 1
        self._host_gpus = set(range(local)) if local > 1 else set()
        self.step_unit = step_unit
        if model is not None:
            self._host_gpus |= gpus_of(model)
            streams = plan_streams(config, model, root, ranks, told)
            self._check(streams)
        else:
            assert feed is not None
            streams = fed_streams(feed)
        self._feed, self._streams = feed, streams
        self.points = streams.points
        self.hooks, self._side = tuple(streams.trained), tuple(streams.unhooked)
        names = streams.trained
        self.forecast = RunForecast(config, names)
        if self.forecast.problems:
            raise AssemblyError("; ".join(self.forecast.problems), ("sinks",))
        groups, workers = plan_workers(config, names)
        groups = streams.with_side_streams(config, groups)
        self.page = _page_of(
            ranks.slots if ranks is not None else [],
            streams.names,
            {worker.name: _slot_bytes(worker, [*names, *self._side]) for worker in workers},
        )
        self.trainers = SAETrainerManager(self.page, workers, groups, names)
        self.bus: BaseDataBus | None = None
        self.hooker: ActivationHooker | None = None
        self._supervisor: Supervisor | None = None
        self._account: BusAccount | None = None
        self._started_unix_ns = time.time_ns()
        self._host_trackers: dict[str, dict[str, Any]] = {}
        self._page_path = ""
        self._before = goes_on_from
        self.clock = StepClock(self.page.slot("host"), first_step)
        if goes_on_from.weights_version:
            self.clock.weights_version = goes_on_from.weights_version - 1
            self.clock.weights_updated()
        self._entry = new_entry(run_dir, first_step, local, goes_on_from.packets)
        try:
            if streams.names:
                self.bus = self._create_bus(groups)
                if self.points:
                    self.hooker = self._create_hooker(self.bus, streams, root, one_call_per_step)
                launch = self._launch_spec(self.bus, workers, terminal)
                self._supervisor = Supervisor(launch, self.page, config.watchdog)
        except BaseException:
            self._release()
            raise

    def _check(self, streams: Streams) -> None:
        """Say which globs of rules with `missing: ok` match nowhere. Raises HookError: none does."""
        if self.config.hooks and not streams.trained:
            raise HookError(
                "hooks: no glob matches a module on any rank: "
                + ", ".join(pattern for rule in self.config.hooks for pattern in rule.match)
            )
        for pattern in streams.unmatched:
            self.notices.say(f"hooks: match {pattern!r} matches no module on any rank of this node")

    @property
    def _shards(self) -> int:
        """Of the bus."""
        if self._feed is not None:
            return self._feed.shards
        return self._ranks.local_world_size if self._ranks is not None else 1

    def _create_bus(self, groups: Sequence[GroupSpec]) -> BaseDataBus:
        ranks, feed = self._ranks, self._feed
        with self._resources.bus_memory() if self._resources else nullcontext():
            return create_data_bus(
                self.config.bus,
                groups,
                profile=self.config.run_profile,
                names=[
                    *self._streams.names,
                    *self._streams.encodings,
                    *(feed.names if feed is not None else ()),
                ],
                shards=self._shards,
                source=ranks.rank if ranks is not None else 0,
            )

    def _create_hooker(
        self,
        bus: BaseDataBus,
        streams: Streams,
        root: torch.nn.Module | None,
        one_call_per_step: bool,
    ) -> ActivationHooker:
        return ActivationHooker(
            bus,
            self.points,
            streams.preprocessors(),
            self.page.slot("host"),
            self.clock,
            on_full=self.config.bus.on_full,
            block_timeout_s=self.config.bus.block_timeout_s,
            coins=coin_keys(self.config, self.points),
            device=self.config.device,
            count_forwards=not one_call_per_step,
            notices=self.notices,
            on_first=self._on_first,
            called=root,
            text=streams.text,
            label_horizon=self.config.labels.horizon if streams.labels else None,
        )

    def _launch_spec(
        self, bus: BaseDataBus, workers: Sequence[WorkerSpec], terminal: bool
    ) -> LaunchSpec:
        handle = bus.handle()
        if self._resources is not None:
            self._resources.place_on_gpus(self._host_gpus)
        # The fork server imports the bus once, so that no restart waits for it.
        bus_module = type(bus).__module__
        return LaunchSpec(
            run_id=self.run_dir.run_id,
            run_dir=str(self.run_dir.path),
            step_unit=self.step_unit,
            terminal=terminal,
            host_pid=os.getpid(),
            bus=handle.to_dict(),
            fds=(self.page.fd, *handle.fds),
            workers=tuple(replace(w, preload=(*w.preload, bus_module)) for w in workers),
            config=self.config.to_plain(),
            placements=self._resources.placements() if self._resources else {},
            niceness=os.getpriority(os.PRIO_PROCESS, 0),
            first_step=self.clock.first_step,
            attempt=self.run_dir.attempt,
            first_packet=self._before.packets,
            shards=self._shards,
        )

    @standard_fds_taken()
    def start(self) -> None:
        """Start the workers, wait until they consume, then attach the hooks.

        Raises:
            SupervisorError: a worker did not come up.

        Whatever it raises, everything was ended and released.
        """
        try:
            self._start()
        except BaseException:
            self._entry["end"] = AttemptEnd.FAILED
            with suppress(OSError):
                self._write_run_json(None)
            self.abort()
            self.close()
            raise

    def _start(self) -> None:
        slot = self.page.slot("host")
        slot.occupy()
        slot.state = WorkerState.READY
        began = began_unix_ns({"attempts": self.attempts})
        self._host_trackers = host_trackers(self.config, self.run_dir.run_id, began)
        self._write_run_json(None)
        if self.config.run.eye and self._on_eye is not None and self.hooks:
            cpus = self._resources.plan.placement(WATCHDOG).cpus if self._resources else ()
            start_eyepiece(self.run_dir.path, cpus, self._on_eye, self.notices.say)
        if self._supervisor is not None:
            self._supervisor.start()
            self._supervisor.wait_ready(self.config.watchdog.startup_timeout_s)
        if self.hooker is not None:
            self.hooker.attach()
            RaisedSampling.on_alarms(self.page, slot, self.clock, self.hooker)
            log_rows(self.points)
        if self._resources is not None:
            self.run_dir.write_json(PLAN_FILE, self._resources.to_dict())
            self._resources.check(self.page)
        self.page.run_state = RunState.RUNNING

    def begins_at(self, step: int) -> None:
        """The host has found out which step it goes on from; before it has made one."""
        self.clock.step_to(step)
        self.clock.first_step = step
        self._entry |= steps_of(self.run_dir, step)
        self._write_run_json(None)

    def stop(
        self,
        result: dict[str, Any] | None = None,
        how: AttemptEnd = AttemptEnd.FINISHED,
        within_s: float | None = None,
    ) -> SessionEnd:
        """Detach, drain, join; idempotent. Takes at most `within_s` (`drain_timeout_s` without) and
        about a second.

        how: for run.json, how this attempt ended.

        Other ranks of the node get that long as well to detach by themselves, before all that.
        """
        orderly = True
        restarts = 0
        timeout_s = self.config.run.drain_timeout_s if within_s is None else within_s
        if self.hooker is not None:
            self.hooker.review()
        self._detach()
        if self._ranks is not None:
            wait_for_ranks(self.page, self._ranks, timeout_s)
        if self.bus is not None:
            self.bus.finish()
        self.page.slot("host").state = WorkerState.DONE
        if self._supervisor is not None:
            orderly = self._supervisor.drain(timeout_s)
            restarts = self._supervisor.watchdog_restarts
        if self.bus is not None:
            self._account = self.bus.account()
        self._entry |= {
            "end": how,
            "ended_unix_ns": time.time_ns(),
            "last_step": self.clock.host_step,
            "weights_version": self.clock.weights_version,
            "account": self._account.to_dict() if self._account is not None else None,
            "archive_deleted": {
                one.reason: {k: v for k, v in asdict(one).items() if k != "reason"}
                for one in figures_of(take_snapshot(self.page, None)).archive_deleted
            },
        }
        try:
            self._write_run_json(result or {})
            self.run_dir.write_json(HISTOGRAMS_FILE, histograms(self.page))
        except OSError as error:  # the host's work is done; a full disk does not take it back
            log.warning("%s: what the run ended with is not written: %s", self.run_dir.path, error)
        return SessionEnd(orderly, self._account, restarts)

    @property
    def captures_gradients(self) -> bool:
        gradients = (Kind.GRADIENT, Kind.INPUT_GRADIENT, Kind.PARAMETER_GRADIENT)
        return any(point.kind in gradients for point in self.points)

    @property
    def devices(self) -> dict[str, dict[str, str]]:
        """Worker -> what it computes on and why, where a sink asks for more than the CPU."""
        return self._resources.devices if self._resources is not None else {}

    @property
    def worker_messages(self) -> Mapping[str, list[str]]:
        """Worker (or watchdog) -> the warnings and errors in its log, where there are any."""
        if self._supervisor is None:
            return {}
        processes = ("watchdog", *self._supervisor.workers)
        found = {name: messages_of(self.run_dir.path, name) for name in processes}
        return {name: messages for name, messages in found.items() if messages}

    def _on_first(self, stream: HookStream) -> None:
        """The width of a hook's rows is known: can its SAEs be trained on them? In the host's hook."""
        assert stream.shape is not None
        assert stream.dtype is not None
        if stream.name not in self.hooks:
            return
        width = stream.kernel.decoded_width(stream.shape, stream.dtype)
        found = self.forecast.saw(stream.name, width)
        if self._on_width is not None:
            self._on_width(stream.name, width, found)
        misfits = [forecast for forecast in found if forecast.misfit is not None]
        for misfit in misfits:
            message = f"SAE {misfit.label!r} cannot be trained: {misfit.misfit}"
            self.misfits.append(message)
            self.notices.say(message)
        if misfits and len(misfits) == len(found):
            stream.off = True
        short = None if self._short else shortage(self.forecast.saes)
        if short is not None:
            self._short = True
            self.notices.say(short)
        if misfits and self._on_misfit is not None:
            self._on_misfit()

    def abort(self) -> None:
        """End every worker at once (second Ctrl-C): no draining, and the hooks stay until `close`.

        For a signal handler too: the thread that it interrupts may hold the lock of a hook's producer.
        """
        if self._supervisor is not None:
            self._supervisor.end()

    def close(self) -> None:
        """Remove the hooks where they are there, release shared memory and descriptors; call after
        `stop` or `abort`, once nothing reads the page."""
        self._detach()
        self._release()

    @property
    def attempts(self) -> list[Mapping[str, Any]]:
        """Entries of run.json, this attempt's last."""
        return [*self.run_dir.earlier, self._entry]

    def _detach(self) -> None:
        if self.hooker is not None:
            self.hooker.detach()

    def _release(self) -> None:
        if self._supervisor is not None:
            self._supervisor.close()
        if self.bus is not None:
            self.bus.close()
            self.bus = None
        self.page.close()

    def _write_run_json(self, result: dict[str, Any] | None) -> None:
        bus = None
        if result is None:
            fds = self._supervisor.fds if self._supervisor is not None else (self.page.fd,)
            self._page_path, *rest = descriptor_paths(fds)
            if self.bus is not None:
                bus = {"handle": self.bus.handle().to_dict(), "fds": rest}
        self.run_dir.write_json(
            RUN_FILE,
            {
                "schema": RUN_SCHEMA,
                "run_id": self.run_dir.run_id,
                "id": self.run_dir.id,
                "attempts": self.attempts,
                "started_unix_ns": self._started_unix_ns,
                "host_pid": os.getpid(),
                "host_start": start_time(os.getpid()),
                "stats_page": self._page_path,
                "bus": bus,
                "ranks": self._ranks.local_world_size if self._ranks is not None else 1,
                "step_unit": self.step_unit,
                "first_step": self.clock.first_step,
                "hooks": list(self.hooks),
                "streams": list(self._streams.described),
                "side_streams": list(self._side),
                "devices": self.devices,
                "environment": environment(),
                "trackers": self._host_trackers,
                "result": result,
            },
        )


def _page_of(ranks: Sequence[str], hooks: Sequence[str], workers: dict[str, int]) -> StatsPage:
    """A slot each for the host, its other ranks, the watchdog and the workers, these of so many bytes."""
    host_bytes = slot_bytes(hooks, METRICS_PER_HOOK, 1)
    own = {"host": host_bytes, "watchdog": SLOT_BYTES}
    return StatsPage.create(own | workers | dict.fromkeys(ranks, host_bytes))


def _slot_bytes(worker: WorkerSpec, hooks: Sequence[str]) -> int:
    """Raises AssemblyError: two of its labels would be the same."""
    if worker.role != "sink":
        return SLOT_BYTES
    options = registry("sink").get(worker.plugin, SinkPlugin).options.model_validate(worker.options)
    try:
        return slot_bytes(options.labels(hooks), METRICS_PER_LABEL)
    except ValueError as error:
        raise AssemblyError(f"{worker.name}: {error}") from None


def gpus_of(model: torch.nn.Module) -> set[int]:
    """Indices of the CUDA devices that the model's tensors are on."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return {t.device.index or 0 for t in tensors if t.device.type == "cuda"}


def log_rows(points: Sequence[HookPoint]) -> None:
    """One line for each way but the last dimension."""
    found: dict[str, list[str]] = {}
    for point in points:
        if point.rows is not None:
            found.setdefault(point.rows.described, []).append(point.name)
    for how, what in (
        ("channels", "the channels at one place ([B, C, H, W] is captured as [B, H, W, C])"),
        ("by size", "channels or the last dimension, as the sizes of the first tensor say"),
    ):
        if how in found:
            names = found[how]
            shown = ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")
            log.info("hooks %s: a row is %s; hooks[].rows changes it", shown, what)
