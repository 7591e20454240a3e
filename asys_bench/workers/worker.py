"""What runs inside a worker process: attach, pull, consume, acknowledge, drain, leave.

A worker leaves in order when its stream has ended or the run drains, and by itself within
`HOST_DEATH_GRACE_S` when the host is gone.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import reduction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.launch import LaunchSpec, WorkerSpec, rank_name
from asys_bench.contracts.run_files import account_file, log_file
from asys_bench.contracts.stats import Counter, Metric, RunState, SlotField, StatsPage, WorkerState
from asys_bench.placement.apply import settle
from asys_bench.placement.plan import Placement
from asys_bench.system.files import replace_file
from asys_bench.system.liveness import ProcessHandle, signal_on_parent_death
from asys_bench.workers.run_lock import join_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from asys_bench.contracts.bus import BusAccount, BusClient, BusSubscription, Lease
    from asys_bench.contracts.sink import BaseSink
    from asys_bench.workers.same_rows import SameRows

log = logging.getLogger(__name__)

HOST_DEATH_GRACE_S = 4.5
"""After the host's death a worker drains and writes this long, then leaves regardless."""
CLOSE_SHARE = 0.5
"""Share of the drain time kept for writing; the rest goes to consuming what is left."""
STOP_CHECK_S = 0.1
"""Time between two checks of a sleeping monitor; each costs a tenth of a millisecond of a CPU."""
REPLACED_EXIT, ORPHAN_EXIT = 76, 75
"""Exit codes: another process has this one's place; the host was gone for too long."""
DUMP_SIGNAL = signal.SIGUSR1
"""Makes a worker write where it is to its log; the watchdog sends it before it kills a hung one."""


class PassedFds:
    """Descriptors on their way to a child of the fork server."""

    def __init__(self, fds: tuple[int, ...]) -> None:
        self.fds = fds

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, ([reduction.DupFd(fd) for fd in self.fds],)


def _receive(passed: list[Any]) -> PassedFds:
    return PassedFds(tuple(one.detach() for one in passed))


def worker_main(launch_json: str, worker_json: str, launch_id: int, passed: PassedFds) -> None:
    """Entry point of every worker process. The exit code is 0 only after an orderly end.

    launch_id: the start that this process is; see `SlotField.LAUNCH`.
    """
    launch = LaunchSpec.from_dict(json.loads(launch_json))
    spec = WorkerSpec(**json.loads(worker_json))
    # Ctrl-C is the host's business, and so is SIGTERM: systemd and Slurm send it to all of a service.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # else "/", where the watchdog is: the host's may be gone by now
        os.chdir(launch.working_dir or "/")
    os.umask(0o077)  # what libraries create in the run's folder is private too
    signal_on_parent_death(signal.SIGCONT)  # stopped, it must still notice that the host is gone
    _log_to_file(Path(launch.run_dir), spec)
    if join_work(Path(launch.run_dir)) is None:
        log.warning("another host has taken the run: %s leaves", spec.name)
        logging.shutdown()
        os._exit(REPLACED_EXIT)
    process = WorkerProcess(launch, spec, launch_id, passed.fds)
    try:
        process.run()
    except Exception:
        log.exception("worker %s failed", spec.name)
        process.slot.state = WorkerState.FAILED
        logging.shutdown()
        os._exit(1)
    logging.shutdown()
    os._exit(0)  # no atexit or destructors of preloaded libraries: the files are closed


def _log_to_file(run_dir: Path, spec: WorkerSpec) -> None:
    """Send this process's log (and a sink's output) to `logs/<name>.log`."""
    path = log_file(run_dir, spec.name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    if spec.role == "sink":  # a monitor draws on the terminal
        os.dup2(descriptor, 1)
    os.close(descriptor)
    faulthandler.register(DUMP_SIGNAL, file=2, all_threads=True)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )


def _value(metric: Metric | None) -> int:
    return metric.value if isinstance(metric, Counter) else 0


def _pull(
    sink: BaseSink,
    subscription: BusSubscription,
    origin_id: int | None,
    same_rows: SameRows | None,
) -> None:
    """A lease for the sink."""
    from asys_bench.contracts.origin import OriginLease

    lease: Lease = subscription.pull_batch(sink.max_packets, sink.linger_s, sink.min_packets)
    if origin_id is not None:
        lease = OriginLease(lease, origin_id)
    if sink.keeps_leases:
        if len(lease):
            sink.consume(lease)
        return
    with lease:
        if len(lease):
            if same_rows is not None:
                same_rows.look(lease.packets)
            sink.consume(lease)


class WorkerProcess:
    """One incarnation of a worker."""

    def __init__(
        self, launch: LaunchSpec, spec: WorkerSpec, launch_id: int, fds: tuple[int, ...]
    ) -> None:
        self._launch, self._spec, self._launch_id = launch, spec, launch_id
        self._config = MasterConfig.model_validate(launch.config)
        self._page = StatsPage.attach(fds[0])
        self._bus_fds = fds[1:]
        self.slot = self._page.slot(spec.name)
        self._host_died_at: float | None = None
        self._leave_if_replaced()
        self.slot.occupy()
        self.slot.state = WorkerState.STARTING

    def run(self) -> None:
        self._settle()  # first, because threads inherit it
        threading.Thread(target=self._watch_host, name="host-watch", daemon=True).start()
        import torch

        torch.set_num_threads(self._spec.threads)
        if self._spec.role == "sink":
            self._run_sink()
        else:
            self._run_monitor()
        self.slot.state = WorkerState.DONE

    def _settle(self) -> None:
        """Take the CPUs, memory node and priorities that the run's plan gives this worker."""
        placement = Placement.from_dict(self._launch.placements.get(self._spec.name, {}))
        niceness, io = self._launch.niceness_of(self._spec), self._config.resources.worker_io
        for problem in settle(placement, niceness, io, idle=self._spec.idle):
            log.warning("%s", problem)

    def _leave_if_replaced(self) -> None:
        """End here, without a trace, when the watchdog that started this one died before it knew of
        it and its successor has started another."""
        if self.slot.get(SlotField.LAUNCH) != self._launch_id:
            log.warning("%s was started again elsewhere: this one leaves", self._spec.name)
            logging.shutdown()
            os._exit(REPLACED_EXIT)

    def time_left_s(self) -> float:
        """Seconds until this process must be gone; infinity while the run goes on."""
        left = self._page.drain_left_s
        if self._host_died_at is not None:
            left = min(left, self._host_died_at + HOST_DEATH_GRACE_S - time.monotonic())
        return left

    def _run_sink(self) -> None:
        from asys_bench.contracts.origin import ORIGIN
        from asys_bench.contracts.sink import SinkPlugin
        from asys_bench.registry import registry
        from asys_bench.workers.same_rows import SameRows, watches
        from asys_bench.workers.shard_bus import attach_bus

        spec = self._spec
        client = attach_bus(self._launch, self._bus_fds)
        plugin = registry("sink").get(spec.plugin, SinkPlugin)
        options = plugin.options.model_validate(spec.options)
        sink = plugin.build(options)
        names = self._open_sink(sink, client, options.ranks)
        subscription = client.subscribe(spec.group, spec.name)
        self.slot.beat()
        self.slot.set(SlotField.READY_NS, time.monotonic_ns())
        self.slot.state = WorkerState.READY
        same_rows = None
        if self._launch.shards > 1 and watches(
            spec, self._launch.workers, partition=plugin.partition
        ):
            same_rows = SameRows(client.name_of)
        self._read(sink, subscription, names().get(ORIGIN), same_rows)
        self.slot.beat()
        sink.close()
        subscription.close()
        if self._host_died_at is not None:
            self._write_account(client.account())
        client.close()

    def _open_sink(
        self, sink: BaseSink, client: BusClient, ranks: int
    ) -> Callable[[], dict[str, int]]:
        """Tell the sink where it is; what gives the names on the bus as of now."""
        from asys_bench.contracts.sink import SinkContext
        from asys_bench.sinks.decoding import Decoder
        from asys_bench.workers.shard_bus import interned_names

        spec, launch = self._spec, self._launch
        decoder = Decoder(client.name_of)
        known: dict[str, int] = {}
        place = Placement.from_dict(launch.placements.get(spec.name, {}))

        def names() -> dict[str, int]:
            return interned_names(client, known)

        sink.open(
            SinkContext(
                name=spec.name,
                run_dir=Path(launch.run_dir),
                run_id=launch.run_id,
                seed=self._config.run.seed,
                slot=self.slot,
                page=self._page,
                wall_offset_ns=self._page.wall_offset_ns,
                clock_shift_ns=self._page.clock_shift_ns,
                incarnation=self.slot.get(SlotField.INCARNATION),
                fsync=self._config.run.fsync,
                name_of=client.name_of,
                names=names,
                decode=decoder,
                rows=decoder.rows,
                grid=decoder.grid,
                rows_each=decoder.rows_each,
                heartbeat=self.slot.beat,
                time_left_s=self.time_left_s,
                device=place.device,
                device_why=place.why,
                device_shared=place.shared,
                ranks=tuple(
                    launch.placements.get(rank_name(spec.name, rank), {})
                    for rank in range(1, ranks)
                ),
                attempt=launch.attempt,
                first_packet=launch.first_packet,
                group=spec.group,
                account=client.account,
                config=launch.config,
                members=sum(one.group == spec.group for one in launch.workers),
            )
        )
        return names

    def _read(
        self,
        sink: BaseSink,
        subscription: BusSubscription,
        origin_id: int | None,
        same_rows: SameRows | None,
    ) -> None:
        """Until the stream has ended, or the rest of the drain's time is needed to write."""
        reserve_s: float | None = None
        while not subscription.ended:
            self._leave_if_replaced()
            self.slot.beat()
            left = self.time_left_s()
            if left != float("inf"):
                reserve_s = left * CLOSE_SHARE if reserve_s is None else reserve_s
                if left < reserve_s:
                    log.warning("drain time is running out: leaving packets unread")
                    break
            if sink.wants_packets:
                _pull(sink, subscription, origin_id, same_rows)
            self.slot.beat()
            sink.idle()

    def _write_account(self, account: BusAccount) -> None:
        """What the host can write no more. The last worker that leaves has seen everything."""
        host = self._page.slot("host").metrics()
        document = {
            "attempt": self._launch.attempt,
            "unix_ns": time.time_ns(),
            "host_step": _value(host.get("host_steps")),
            "weights_version": _value(host.get("weights_version")),
            "account": account.to_dict(),
        }
        path = account_file(Path(self._launch.run_dir), self._spec.name)
        try:
            replace_file(path, json.dumps(document).encode(), sync=False)
        except OSError as error:
            log.warning("the account of this attempt is not written: %s", error)

    def _run_monitor(self) -> None:
        from asys_bench.config.assembly import create_monitor
        from asys_bench.contracts.monitor import MonitorContext, MonitorPlugin
        from asys_bench.monitors.snapshot import publish_account
        from asys_bench.registry import registry
        from asys_bench.workers.shard_bus import attach_bus

        spec = self._spec
        client = attach_bus(self._launch, self._bus_fds)
        plugin = registry("monitor").get(spec.plugin, MonitorPlugin)
        monitor = create_monitor(plugin, plugin.options.model_validate(spec.options))
        monitor.open(
            MonitorContext(
                run_dir=Path(self._launch.run_dir),
                run_id=self._launch.run_id,
                page=self._page,
                account=client.account,
                config=self._launch.config,
                step_unit=self._launch.step_unit,
                attempt=self._launch.attempt,
                first_step=self._launch.first_step,
                terminal=self._launch.terminal,
                slot=self.slot,
                heartbeat=self.slot.beat,
                time_left_s=self.time_left_s,
            )
        )
        self.slot.set(SlotField.READY_NS, time.monotonic_ns())
        self.slot.state = WorkerState.READY
        while self._page.run_state is not RunState.STOPPED and self.time_left_s() > 0.5:
            self._leave_if_replaced()
            self.slot.beat()
            publish_account(self.slot, client)
            monitor.tick(self._page.run_state)
            self._sleep(monitor.interval_s)
        publish_account(self.slot, client)
        monitor.tick(RunState.STOPPED)
        monitor.close()
        client.close()

    def _sleep(self, seconds: float) -> None:
        """Sleep, but notice within `STOP_CHECK_S` that the run has stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._page.run_state is RunState.STOPPED:
                return
            time.sleep(min(STOP_CHECK_S, left))
            self.slot.beat()

    def _watch_host(self) -> None:
        try:
            host = ProcessHandle(self._launch.host_pid)
            host.wait(float("inf"))
        except ProcessLookupError:
            pass
        self._host_died_at = time.monotonic()
        time.sleep(HOST_DEATH_GRACE_S)
        os._exit(ORPHAN_EXIT)
