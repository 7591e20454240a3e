"""Two PPO runs whose hosts make a rollout in turn: one is observed alone, the other has all of `change/`.

`plain` has a trainer and an archive, `full` has labels and the sinks `probe`, `reservoir` and `alarm` too.
Each runs in a process of its own, and its host waits while the other one makes a rollout with its gradient
steps. So both meet the same machine, and rollouts are compared in fours (plain, full, full, plain). All
hosts have the first core, all workers the others. A host's time is its main thread's: CPU time and the
clock.

`python label_turns.py FD CONFIG LABELS` is such a host: FD is its end of a pipe, CONFIG is JSON, LABELS is 1
or 0.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from asys_bench.config import config_from_data
from asys_bench.hosts.rollout_labels import RolloutLabels
from asys_bench.run.experiment import ExperimentPipeline

WARM_UP = 8
"""Fours that are not counted: processes still load what they use."""
START_S = 300.0
PLAIN: dict[str, Any] = {"trainer": {"kind": "sae_trainer"}, "archive": {"kind": "archiver"}}
FULL: dict[str, Any] = {
    **PLAIN,
    "probe": {"kind": "probe"},
    "reservoir": {"kind": "reservoir"},
    "alarm": {
        "kind": "alarm",
        "options": {
            "watch": [{"metric": name} for name in ("sae_*", "probe_*", "host_reward_mean")],
        },
    },
}


def ppo_run(folder: Path, rollouts: int, sinks: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run; PPO on its default task, 256 steps a rollout."""
    return {
        "run": {"dir": str(folder), "name": "cost"},
        "host": {"kind": "ppo", "options": {"ppo": {"total_timesteps": 256 * rollouts}}},
        "hooks": [{"match": "mlp_extractor.policy_net", "phase": "eval"}],
        "sinks": sinks,
        "resources": {"host_threads": 1},
        "watchdog": {"heartbeat_timeout_s": 60, "startup_timeout_s": 120},
        "bus": {"backend": os.environ.get("ASYS_LABEL_BUS", "mp_queue")},
    }


def pin(process: psutil.Process, cores: list[int]) -> None:
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)


def share_cores(cores: list[int]) -> None:
    """This process gets the first core, its workers the others."""
    pin(psutil.Process(), cores[:1])
    for worker in psutil.Process().children(recursive=True):
        pin(worker, cores[1:] or cores)


def run_rollouts(config: dict[str, Any], whole_at: Callable[[int], None]) -> None:
    """The whole run; `whole_at` is called where each rollout begins, with its step."""
    pipeline = ExperimentPipeline(config_from_data(config))
    try:
        pipeline.setup()
        pipeline._host.whole_at = whole_at
        pipeline.run()
        pipeline.shutdown()
    finally:
        pipeline.close()


def host(asked: Connection, config: dict[str, Any], labels: bool) -> None:
    """A run whose host makes a rollout for each message, and answers with (CPU seconds, seconds)."""
    for name in () if labels else ("stepped", "ended"):  # an archive alone wants labels too
        setattr(RolloutLabels, name, lambda *arguments: None)
    began: list[float] = []

    def whole_at(step: int) -> None:
        now = time.thread_time(), time.monotonic()
        if began:
            asked.send([b - a for a, b in zip(began, now, strict=True)])
        else:
            share_cores(sorted(os.sched_getaffinity(0)))
            asked.send(None)
        asked.recv()
        began[:] = time.thread_time(), time.monotonic()

    run_rollouts(config, whole_at)


class Host:
    """The other end of `host`."""

    def __init__(self, config: dict[str, Any], labels: bool) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        about = [str(theirs.fileno()), json.dumps(config), str(int(labels))]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *about], pass_fds=[theirs.fileno()]
        )
        theirs.close()

    def begun(self) -> None:
        """Wait for its first rollout."""
        assert self._pipe.poll(START_S), "the run did not start"
        assert self._pipe.recv() is None

    def rollout(self) -> list[float]:
        self._pipe.send(None)
        assert self._pipe.poll(START_S), "the host stands still"
        taken: list[float] = self._pipe.recv()
        return taken

    def end(self) -> None:
        """Let it end its run, which has no rollout left."""
        self._pipe.send(None)
        assert self.process.wait(60) == 0

    def kill(self) -> None:
        """If it still runs; with its workers."""
        if self.process.poll() is None:
            for one in psutil.Process(self.process.pid).children(recursive=True):
                one.kill()
            self.process.kill()
            self.process.wait()
        self._pipe.close()


def measured(folder: Path, fours: int) -> NDArray[np.float64]:
    """Of so many fours of rollouts [fours, 4] (plain, full, full, plain): (CPU seconds, seconds)."""
    rollouts = 2 * (fours + WARM_UP)
    with ExitStack() as open_hosts:
        plain, full = (
            Host(ppo_run(folder / name, rollouts, sinks), labels=name == "full")
            for name, sinks in (("plain", PLAIN), ("full", FULL))
        )
        for one in (plain, full):
            open_hosts.callback(one.kill)
        for one in (plain, full):
            one.begun()
        taken = [
            [one.rollout() for one in (plain, full, full, plain)] for _ in range(fours + WARM_UP)
        ]
        for one in (plain, full):
            one.end()
    return np.array(taken[WARM_UP:])


if __name__ == "__main__":
    host(Connection(int(sys.argv[1])), json.loads(sys.argv[2]), sys.argv[3] == "1")
