"""A worker that is a group of processes, under the watchdog: it trains, and restarts as one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asys_bench.config import config_from_data
from asys_bench.contracts.run_files import log_file
from asys_bench.contracts.stats import Counter, SlotField, WorkerState
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession
from asys_bench.sae import load_sae
from asys_bench.system.liveness import is_running
from asys_bench.system.process import start_time
from tests.conformance.support import eventually

PATIENCE_S = 240.0
SOAK = pytest.mark.soak("half a minute")
SAE = {"d_sae": 64, "k": 4, "batch_rows": 64, "buffer_rows": 512, "checkpoint_interval_s": 0.5}


def _config(folder: Path, split: str) -> Any:
    options = {"sae": SAE, "group": {"size": 2, "split": split}, "max_lag_s": 600}
    return config_from_data(
        {
            "host": {"kind": "ppo"},
            "run": {"dir": str(folder), "name": "group", "drain_timeout_s": 60},
            "hooks": [{"match": "0"}],
            "sinks": {"trainer": {"kind": "sae_trainer", "options": options}},
            "monitors": {},
            "watchdog": {"startup_timeout_s": 120, "restart_limit": 20, "restart_window_s": 600},
        }
    )


def _ranks_of(pid: int) -> list[int]:
    """The other ranks: children of the worker."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _feed_until(
    session: ObservationSession, module: torch.nn.Module, done: Callable[[], bool], what: str
) -> int:
    deadline, steps = time.monotonic() + PATIENCE_S, 0
    while not done():
        assert time.monotonic() < deadline, what
        module(torch.randn(64, 8))
        session.clock.step()
        steps += 1
        time.sleep(0.01)
    return steps


def _steps(session: ObservationSession) -> float:
    metric = session.page.slot("trainer-0").metrics().get("sae_steps{hook=0}")
    return metric.value if isinstance(metric, Counter) else 0


def _ends_exactly(session: ObservationSession, steps: int, run_dir: RunDir) -> None:
    end = session.stop({"steps": steps})
    assert end.orderly
    account = end.account
    assert account is not None
    assert account.produced == steps
    for group in account.groups:
        assert account.imbalance(group) == 0
    sae, metadata = load_sae(run_dir.path / "sae" / "0" / "latest")
    assert sae.d_sae == 64
    assert metadata["training_steps"] > 0


@pytest.mark.rest
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("split", "whom", "how"),
    [
        ("latents", 1, signal.SIGKILL),
        pytest.param("rows", 0, signal.SIGKILL, marks=SOAK),
        pytest.param("latents", 1, signal.SIGSTOP, marks=SOAK),
    ],
)
def test_a_struck_rank_restarts_the_group_from_its_checkpoint(
    tmp_path: Path, split: str, whom: int, how: signal.Signals
) -> None:
    """Rank 1 or the worker itself, killed or stopped. The host is called all the while, and the account of
    its packets stays exact."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
    run_dir = RunDir.create(tmp_path, "group")
    session = ObservationSession(_config(tmp_path, split), module, run_dir)
    try:
        session.start()
        slot = session.page.slot("trainer-0")
        steps = _feed_until(session, module, lambda: _steps(session) > 20, "training")
        checkpoints = run_dir.path / "sae" / "0" / "latest"
        steps += _feed_until(session, module, checkpoints.exists, "a checkpoint")
        worker = slot.get(SlotField.PID)
        ranks = _ranks_of(worker)
        assert len(ranks) == 1
        started = start_time(ranks[0])
        os.kill([worker, *ranks][whom], how)
        steps += _feed_until(
            session,
            module,
            lambda: slot.get(SlotField.PID) != worker and slot.state is WorkerState.READY,
            "a restart",
        )
        eventually(lambda: not is_running(ranks[0], started), "the end of the old rank")
        text = log_file(run_dir.path, "trainer-0").read_text()
        before = text.count("resumed at step")
        steps += _feed_until(
            session,
            module,
            lambda: (
                log_file(run_dir.path, "trainer-0").read_text().count("ranks train together") == 2
            ),
            "a second group",
        )
        at = _steps(session)
        steps += _feed_until(session, module, lambda: _steps(session) > at, "more training")
        text = log_file(run_dir.path, "trainer-0").read_text()
        assert text.count("resumed at step") >= max(1, before)
        if whom == 1:
            said = "has been silent for" if how is signal.SIGSTOP else "has ended: signal SIGKILL"
            assert said in text
        assert slot.get(SlotField.RESTARTS) == 1
        (last,) = _ranks_of(slot.get(SlotField.PID))
        started = start_time(last)
        _ends_exactly(session, steps, run_dir)
        assert not is_running(last, started)
    finally:
        session.abort()
        session.close()
