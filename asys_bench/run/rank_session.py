"""The part of a run that is not local rank 0's: this rank's hooks, its shard and its stats slot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.raised_sampling import RaisedSampling
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.run.streams import coin_keys, plan_streams
from asys_bench.rundir.live_run import LiveRun
from asys_bench.system.launcher import LocalRanks
from asys_bench.system.liveness import ProcessHandle
from asys_bench.system.standard_fds import standard_fds_taken
from asys_bench.workers.shard_bus import ShardOfBus


@dataclass(frozen=True)
class SessionEnd:
    """How an observation ended."""

    orderly: bool
    """Every worker drained, wrote and left before the deadline."""
    account: BusAccount | None
    watchdog_restarts: int


class RankSession:
    """Attaches to the run that local rank 0 owns; `start`, `stop` and `close` as the owner's session.

    If this process dies, the run goes on without it; if local rank 0 does, its workers drain and
    leave, and what is pushed here is refused and counted for nobody.
    """

    @standard_fds_taken()
    def __init__(
        self,
        config: MasterConfig,
        model: torch.nn.Module,
        run_dir: Path,
        ranks: LocalRanks,
        root: torch.nn.Module | None = None,
        first_step: int = 0,
        one_call_per_step: bool = False,
    ) -> None:
        """Take this rank's shard.

        Raises:
            LiveRunError: the run is gone; BusError: the shard is taken, or the bus's producers live
            with its owner; HookError: a glob that matches no module.
        """
        streams = plan_streams(config, model, root, ranks)
        self.points = streams.points
        self.hooks = tuple(one.name for one in streams.points if one.name not in streams.side)
        self._run = LiveRun.attach(run_dir)
        self.page = self._run.page
        self._bus: ShardOfBus | None = None
        try:
            self._slot = self.page.slot(ranks.slot)
            self.clock = StepClock(self._slot, first_step)
            self._bus = ShardOfBus(self._run.client, ranks.local_rank, ranks.rank)
            self._hooker = ActivationHooker(
                self._bus,
                self.points,
                streams.preprocessors(),
                self._slot,
                self.clock,
                on_full=config.bus.on_full,
                block_timeout_s=config.bus.block_timeout_s,
                coins=coin_keys(config, self.points, ranks.rank),
                device=config.device,
                count_forwards=not one_call_per_step,
                called=root,
                text=streams.text,
                label_horizon=config.labels.horizon if streams.labels else None,
            )
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Attach the hooks; the workers are up already. Whatever it raises, everything was released."""
        try:
            self._slot.occupy()
            self._slot.state = WorkerState.READY
            self._hooker.attach()
            RaisedSampling.on_alarms(self.page, self._slot, self.clock, self._hooker)
        except BaseException:
            self.close()
            raise

    def stop(
        self,
        result: Mapping[str, Any] | None = None,
        how: str = "",
        within_s: float | None = None,
    ) -> SessionEnd:
        """Detach and end this shard. The account is the whole run's, which goes on. Idempotent.

        Its arguments are not used: local rank 0 drains and writes run.json.
        """
        self._hooker.detach()
        if self._bus is not None:
            self._bus.finish()
        self._slot.state = WorkerState.DONE
        return SessionEnd(True, self._run.client.account(), 0)

    def close(self) -> None:
        """Let go of the bus and the page. Idempotent."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None
        self._run.close()


def wait_for_ranks(page: StatsPage, ranks: LocalRanks, timeout_s: float) -> list[str]:
    """Wait until every rank that has joined is done or dead; the slots of those that were not.

    Ranks that never joined are not waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        busy = [name for name in ranks.slots if _is_busy(page, name)]
        if not busy or time.monotonic() >= deadline or page.run_state is RunState.STOPPED:
            return busy
        time.sleep(0.01)


def _is_busy(page: StatsPage, name: str) -> bool:
    slot = page.slot(name)
    if not slot.get(SlotField.PID) or slot.state is WorkerState.DONE:
        return False
    with suppress(ProcessLookupError, OSError):
        handle = ProcessHandle(slot.get(SlotField.PID), slot.get(SlotField.PROCESS_START))
        try:
            return handle.alive()
        finally:
            handle.close()
    return False
