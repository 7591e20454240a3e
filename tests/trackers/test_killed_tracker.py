"""Real runs whose tracker is killed, the monitor's process or wandb's own: the host computes what it computes
without, and what is sent afterwards arrives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from asys_bench.monitors.metrics_csv import value_text
from asys_bench.monitors.tracker.mlflow_runs import metric_key

from .kept import environment, read, read_csv, read_wandb, series_of

pytestmark = [pytest.mark.rest, pytest.mark.timeout(600)]
HOST = (
    "host.options.ppo.total_timesteps=16384",
    "host.keep_weights=true",
)
HOOK = "mlp_extractor.policy_net"
SERVICES = tuple(name for name in ("wandb", "trackio", "mlflow") if find_spec(name))
"""One monitor for all of those that are installed."""


def options_of(kept: Path) -> tuple[str, ...]:
    sections = {
        "wandb": "mode=offline",
        "trackio": "project=killed",
        "mlflow": f"tracking_uri=sqlite:///{kept}/mlflow.db",
    }
    options = "monitors.tracker.options"
    return (
        "monitors.tracker.kind=tracker",
        f"{options}.interval_s=0.2",
        *(f"{options}.{name}.{sections[name]}" for name in SERVICES),
    )


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Callable[[str], None]) -> Path:
    """The folder where trackers keep what they get."""
    needs("wandb")
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.chdir(folder)  # MLflow puts artifacts beside the process
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    return folder


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


def points_of(run: Any, service: str) -> float:
    return run.metric("monitor-tracker", f"tracker_points{{tracker={service}}}")


@contextmanager
def held(run: Any) -> Iterator[None]:
    """Its host stands still from its first step on, and all trackers have begun: on a busy machine it
    would be over before they have."""
    run.wait_for(lambda: run.metric("host", "host_steps") > 0, "a step")
    os.kill(run.process.pid, signal.SIGSTOP)
    try:
        run.wait_for(lambda: all(points_of(run, name) > 2 for name in SERVICES), "points")
        yield
    finally:
        os.kill(run.process.pid, signal.SIGCONT)


def check_undisturbed(run: Any, alone: Any) -> None:
    """The host of `run` did what that of `alone` did."""
    assert weights_of(run) == weights_of(alone)
    mine, other = (one.summary()["host"] for one in (run, alone))
    assert (mine["steps"], mine["figures"]) == (other["steps"], other["figures"])
    assert run.summary()["balanced"]


def check_last_points(run: Any, kept: Path) -> None:
    """The last point of each of the five series is the last of metrics.csv."""
    csv = read_csv(run.path / "metrics.csv", HOOK)
    for service in SERVICES:
        found = read(kept, service)
        for name in series_of(HOOK):
            step, value = found["series"][metric_key(name) if service == "mlflow" else name][-1]
            assert (int(step), value_text(value)) == csv[name][-1], (service, name)


def test_killing_the_tracker_changes_nothing_for_the_host(
    start_run: Callable[..., Any], kept: Path
) -> None:
    alone = start_run(*HOST)
    assert alone.finish() == 0, alone.text()

    run = start_run(*HOST, *options_of(kept))
    with held(run):
        pid = run.pid("monitor-tracker")
        os.kill(pid, signal.SIGKILL)
        run.wait_for(lambda: run.is_replaced("monitor-tracker", pid), "its successor")
        seen = {name: points_of(run, name) for name in SERVICES}
        run.wait_for(lambda: all(points_of(run, n) > seen[n] + 2 for n in SERVICES), "its points")
    assert run.finish() == 0, run.text()

    check_undisturbed(run, alone)
    for service in SERVICES:
        assert f"{service}: sent" in run.text()
    until_gone(kept)
    names = [one["run_id"] for one in read_wandb(kept)["runs"]]
    base = names[-1].removesuffix("-3")
    assert names[-2:] == [f"{base}-2", f"{base}-3"], (
        names
    )  # the successor's, and the one of the ending
    assert names[:-2] in ([base], []), names  # of the killed one's nothing may be on the disk yet
    check_last_points(run, kept)


def test_killing_wandbs_own_process_changes_nothing_for_the_host(
    start_run: Callable[..., Any], kept: Path
) -> None:
    alone = start_run(*HOST)
    assert alone.finish() == 0, alone.text()

    run = start_run(*HOST, *options_of(kept))
    with held(run):
        before = points_of(run, "wandb")
        for process in wandb_processes(kept):
            process.kill()
        run.wait_for(lambda: points_of(run, "wandb") > before + 5, "points to a new process")
    assert run.finish() == 0, run.text()

    check_undisturbed(run, alone)
    until_gone(kept)
    check_last_points(run, kept)


def until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while wandb_processes(folder):
        assert time.monotonic() < deadline, "a process of wandb's is left"
        time.sleep(0.1)
