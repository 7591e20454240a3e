"""A real run whose tracker is killed: the host computes what it computes without, and the tracker goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from asys_bench.monitors.metrics_csv import value_text

from .kept import environment, read_csv, read_wandb, series_of

pytestmark = [pytest.mark.rest, pytest.mark.timeout(600)]
HOST = (
    "host.options.ppo.total_timesteps=16384",
    "host.keep_weights=true",
)
HOOK = "mlp_extractor.policy_net"


def weights_of(run: Any) -> dict[str, bytes]:
    """The weights that the host ended with, by file."""
    files = sorted(path for path in (run.path / "host").rglob("*.safetensors"))
    assert files
    return {path.name: path.read_bytes() for path in files}


def wandb_processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "wandb-core" in process.name() and process.environ().get("WANDB_DIR") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_killing_the_tracker_changes_nothing_for_the_host(
    start_run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    needs: Callable[[str], None],
) -> None:
    needs("wandb")
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, value in environment(kept).items():
        monkeypatch.setenv(name, value)
    alone = start_run(*HOST)
    assert alone.finish() == 0, alone.text()

    run = start_run(
        *HOST,
        "monitors.tracker.kind=tracker",
        "monitors.tracker.options.wandb.mode=offline",
        "monitors.tracker.options.interval_s=0.2",
    )
    points = "tracker_points{tracker=wandb}"
    run.wait_for(lambda: run.metric("monitor-tracker", points) > 2, "points")
    pid = run.pid("monitor-tracker")
    os.kill(pid, signal.SIGKILL)
    run.wait_for(lambda: run.is_replaced("monitor-tracker", pid), "its successor")
    assert run.finish() == 0, run.text()

    assert weights_of(run) == weights_of(alone)
    mine, other = (one.summary()["host"] for one in (run, alone))
    assert (mine["steps"], mine["figures"]) == (other["steps"], other["figures"])
    assert run.summary()["balanced"]
    assert "wandb: sent" in run.text()
    until_gone(kept)

    found = read_wandb(kept)
    first, second, ending = (one["run_id"] for one in found["runs"])
    assert (second, ending) == (f"{first}-2", f"{first}-3")
    csv = read_csv(run.path / "metrics.csv", HOOK)
    for name in series_of(HOOK):
        step, value = found["series"][name][-1]
        assert (int(step), value_text(value)) == csv[name][-1], name


def until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while wandb_processes(folder):
        assert time.monotonic() < deadline, "a process of wandb's is left"
        time.sleep(0.1)
