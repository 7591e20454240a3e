from __future__ import annotations

import csv
import errno
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asys_bench.contracts.monitor import MonitorContext
from asys_bench.contracts.stats import RunState, WorkerState
from asys_bench.monitors.logging_csv import LoggingCSVMonitor, LoggingCSVOptions, plugin
from asys_bench.monitors.tensorboard_files import MISSING


def context(run: Any, run_dir: Path, terminal: bool = False) -> MonitorContext:
    return MonitorContext(run_dir, "a-run", run.page, run.account, {}, "env step", terminal)


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "monitor.log").read_text().splitlines()]


def no_tensorboard(**options: Any) -> LoggingCSVMonitor:
    return LoggingCSVMonitor(LoggingCSVOptions(tensorboard=False, **options))


def test_one_run_leaves_a_csv_a_log_and_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Any
) -> None:
    monitor = no_tensorboard()
    monitor.open(context(run, tmp_path))
    run.host_steps(10)
    run.set_worker("trainer-0", WorkerState.READY)
    monitor.tick(RunState.RUNNING)
    run.host_steps(10)
    monitor.tick(RunState.STOPPED)
    monitor.close()
    monitor.close()
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        steps = [r["value"] for r in csv.DictReader(lines) if r["metric"] == "host_steps"]
    assert steps == ["10", "20"]
    assert [e["event"] for e in events(tmp_path)] == ["run_opened", "run_state", "worker_ready"]
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "\x1b" not in out
    assert "20 env steps" in out


def test_a_restarted_monitor_goes_on_with_the_files_and_the_clock(tmp_path: Path, run: Any) -> None:
    first = no_tensorboard()
    first.open(context(run, tmp_path))
    run.set_worker("trainer-0", WorkerState.READY)
    first.tick(RunState.RUNNING)
    # Killed here: nothing is closed, the last line is torn.
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("9.9,2025-01-01T00:00")
    second = no_tensorboard()
    second.open(context(run, tmp_path))
    second.tick(RunState.STOPPED)
    second.close()
    first.close()
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert all(None not in row.values() for row in rows)
    times = [float(row["time_s"]) for row in rows]
    assert times == sorted(times)
    logged = events(tmp_path)
    assert [e["event"] for e in logged].count("worker_ready") == 1
    assert logged[-1]["event"] == "monitor_restarted"
    assert logged[-1]["started_ns"] == logged[0]["started_ns"]


def test_a_terminal_gets_a_live_table_and_frames_faster_than_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Any
) -> None:
    monitor = no_tensorboard(refresh_hz=4)
    monitor.open(context(run, tmp_path, terminal=True))
    run.host_steps(10)
    for _ in range(3):
        monitor.tick(RunState.RUNNING)
    monitor.close()
    assert monitor.interval_s == 0.25
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        rows = [r for r in csv.DictReader(lines) if r["metric"] == "host_steps"]
    assert len(rows) == 1
    assert "\x1b[" in capsys.readouterr().out


def test_tensorboard_files_hold_the_scalars(tmp_path: Path, run: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = LoggingCSVMonitor(LoggingCSVOptions(plain_interval_s=0, csv=False))
    monitor.open(context(run, tmp_path))
    run.host_steps(10)
    run.train(fvu=0.25)
    monitor.tick(RunState.STOPPED)
    monitor.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (point,) = board.Scalars("sae_fvu/policy.net.0")
    assert (point.step, point.value) == (10, 0.25)
    assert board.Tags()["histograms"] == ["hook_latency_us/policy.net.0"]
    assert not (tmp_path / "metrics.csv").exists()


def test_a_missing_tensorboard_is_said_once_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monitor = LoggingCSVMonitor(LoggingCSVOptions(plain_interval_s=0))
    monitor.open(context(run, tmp_path))
    monitor.tick(RunState.RUNNING)
    monitor.tick(RunState.STOPPED)
    monitor.close()
    assert [e["message"] for e in events(tmp_path) if e["event"] == "notice"] == [MISSING]
    assert (tmp_path / "metrics.csv").stat().st_size > 0


class Disk:
    """os.write that takes a part and then refuses, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self._real = False, os.write
        self._part = False
        monkeypatch.setattr("asys_bench.system.files.append_file.os.write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if not self.full:
            return self._real(fd, data)
        self._part = not self._part
        if self._part:
            return self._real(fd, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_writes_out_until_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.setattr("asys_bench.monitors.event_log.FIRST_PAUSE_S", 0.0)
    disk = Disk(monkeypatch)
    monitor = no_tensorboard(plain_interval_s=0, interval_s=1e-9)
    monitor.open(context(run, tmp_path))
    ticks = "1011001"
    for number, tick in enumerate(ticks):
        disk.full = tick == "0"
        run.host_steps(10)
        monitor.tick(RunState.STOPPED if number == len(ticks) - 1 else RunState.RUNNING)
        if disk.full:
            assert (tmp_path / "metrics.csv").read_bytes().endswith(b"\n")
    monitor.close()
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert all(None not in row.values() for row in rows)
    assert [r["value"] for r in rows if r["metric"] == "host_steps"] == ["10", "30", "40", "70"]
    said = [e["message"] for e in events(tmp_path) if e["event"] == "notice"]
    assert "'csv' goes on; 1 writes were left out" in " ".join(said)
    assert "'csv' goes on; 2 writes were left out" in " ".join(said)


def test_files_that_a_full_disk_kept_from_opening_are_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    monkeypatch.setattr("asys_bench.monitors.event_log.FIRST_PAUSE_S", 0.0)
    disk = Disk(monkeypatch)
    disk.full = True
    monitor = no_tensorboard(plain_interval_s=0)
    monitor.open(context(run, tmp_path))
    monitor.tick(RunState.RUNNING)
    disk.full = False
    monitor.tick(RunState.STOPPED)
    monitor.close()
    assert events(tmp_path)[0]["event"] == "run_opened"
    assert (tmp_path / "metrics.csv").read_text().startswith("time_s,")


def test_an_output_that_fails_otherwise_is_given_up_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EPIPE, "Broken pipe")

    monitor = no_tensorboard(plain_interval_s=0)
    monitor.open(context(run, tmp_path))
    monkeypatch.setattr("asys_bench.monitors.metrics_csv.MetricsCsv.write", broken)
    monitor.tick(RunState.RUNNING)
    monitor.tick(RunState.STOPPED)
    monitor.close()
    notices = [e["message"] for e in events(tmp_path) if e["event"] == "notice"]
    assert len(notices) == 1
    assert "'csv' is given up" in notices[0]


def test_heartbeats_are_seconds_by_worker(tmp_path: Path, run: Any) -> None:
    monitor = no_tensorboard(plain_interval_s=0)
    monitor.open(context(run, tmp_path))
    run.set_worker("trainer-0", WorkerState.READY)
    ages = monitor.get_heartbeats()
    monitor.close()
    assert 0 <= ages["trainer-0"] < 60
    assert ages["archive-0"] == float("inf")


def test_the_plugin_builds_it_and_a_misspelt_option_is_an_error() -> None:
    monitor = plugin.build(plugin.options.model_validate({"interval_s": 2.5}))
    assert isinstance(monitor, LoggingCSVMonitor)
    with pytest.raises(ValidationError):
        plugin.options.model_validate({"intervall_s": 1})


def test_a_further_attempt_goes_on_with_the_files_and_no_time_goes_back(
    tmp_path: Path, run: Any
) -> None:
    def attempt(number: int, ticks: int = 2) -> None:
        monitor = no_tensorboard()
        monitor.open(replace(context(run, tmp_path), attempt=number, first_step=5))
        for _ in range(ticks):
            run.host_steps(10)
            monitor.tick(RunState.STOPPED)
        monitor.close()

    attempt(0)
    path = tmp_path / "metrics.csv"
    lines = path.read_text().splitlines()
    # The first machine's clock was an hour ahead, and it had been at it for two hours.
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds")
    last = lines[-1].split(",")
    path.write_text("\n".join([*lines, ",".join(["7200.000", ahead, *last[2:]])]) + "\n")
    attempt(1)
    attempt(1)  # its monitor was killed
    attempt(2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [float(row["time_s"]) for row in rows]
    walls = [row["wall_time"] for row in rows]
    assert times == sorted(times)
    assert walls == sorted(walls)
    assert [row["attempt"] for row in rows if row["metric"] == "host_steps"] == list("00111122")
    assert 7200 <= times[-1] < 7300
    names = [event["event"] for event in events(tmp_path) if "run_id" in event]
    assert names == ["run_opened", "run_resumed", "monitor_restarted", "run_resumed"]
    assert [event.get("attempt") for event in events(tmp_path) if "run_id" in event] == [
        None, 1, 1, 2,
    ]  # fmt: skip
