"""`asys-run top` and `asys-run plan` over a page that this very process keeps."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from asys_bench.cli.commands import run_plan, run_top
from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.monitors.snapshot import publish_account
from asys_bench.rundir.attach import RunGoneError, attach_run, find_run
from asys_bench.system.process import start_time

HOOK = "policy.net.0"


class Bus:
    """Knows its account."""

    def account(self) -> BusAccount:
        group = GroupAccount("trainer", 90, 0, 0, 0, 10)
        return BusAccount(100, {"full": 4}, 6400, (group,))


@pytest.fixture
def page() -> Iterator[StatsPage]:
    made = StatsPage.create(["host", "watchdog", "trainer-0", "monitor-log"])
    made.run_state = RunState.RUNNING
    host = made.slot("host")
    host.set(SlotField.PID, os.getpid())
    host.set(SlotField.PROCESS_START, start_time(os.getpid()))
    host.state = WorkerState.READY
    host.counter("host_steps").add(1234)
    host.histogram("hook_latency_ns", hook=HOOK).record(20_000)
    host.counter("hook_captured", hook=HOOK).add(100)
    made.slot("trainer-0").gauge("sae_fvu", hook=HOOK).set(0.125)
    publish_account(made.slot("monitor-log"), Bus())
    yield made
    made.close()


@pytest.fixture
def run_dir(page: StatsPage, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a-run"
    folder.mkdir(parents=True)
    document = {
        "schema": "asys.run/1",
        "run_id": "a-run",
        "hooks": [HOOK],
        "host_pid": os.getpid(),
        "host_start": start_time(os.getpid()),
        "stats_page": f"/proc/{os.getpid()}/fd/{page.fd}",
        "step_unit": "env step",
        "started_unix_ns": time.time_ns(),
    }
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text("bus: {capacity_packets: 1000}\n")
    return folder


def command(module: ModuleType, *words: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    module.add(parser)
    out = io.StringIO()
    console = Console(file=out, width=120, color_system=None)
    code: int = module.main(parser.parse_args(words), console)
    return code, out.getvalue()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_top, "FIRST_S", 0.01)


def test_one_frame_shows_the_run_the_bus_and_every_process(run_dir: Path) -> None:
    code, text = command(run_top, str(run_dir), "--once")
    assert code == 0
    for wanted in ("a-run", "1,234 env steps", HOOK, "0.125", "100 packets", "4 full", "1.0 %",
                   "hooks take", str(os.getpid())):  # fmt: skip
        assert wanted in text
    assert "\x1b" not in text


def test_a_frame_is_written_as_a_picture(run_dir: Path, tmp_path: Path) -> None:
    code, _ = command(run_top, str(run_dir), "--once", "--svg", str(tmp_path / "top.svg"))
    assert code == 0
    assert (tmp_path / "top.svg").read_text().startswith("<svg")


def test_looking_changes_nothing_on_the_page(run_dir: Path, page: StatsPage) -> None:
    before = page._mapping[:]
    command(run_top, str(run_dir), "--once")
    assert page._mapping[:] == before


def test_the_newest_run_is_found_and_a_wrong_name_is_refused(run_dir: Path) -> None:
    older = run_dir.parent / "older"
    older.mkdir()
    (older / "run.json").write_text("{}")
    os.utime(older / "run.json", (1, 1))
    assert find_run(None, run_dir.parent) == run_dir
    assert find_run("older", run_dir.parent) == older
    with pytest.raises(RunGoneError, match=r"no run\.json"):
        find_run("nowhere", run_dir.parent)
    with pytest.raises(RunGoneError, match="has no runs"):
        find_run(None, run_dir)


@pytest.mark.parametrize(
    "change",
    [
        {"host_pid": 4_194_303, "stats_page": "/proc/4194303/fd/3"},
        {"stats_page": f"/proc/{os.getpid()}/fd/0"},
        {"stats_page": "/dev/null"},
        {"host_pid": 1},
    ],
)
def test_a_run_that_has_ended_is_said_with_what_to_do_instead(
    run_dir: Path, change: dict[str, Any]
) -> None:
    document = json.loads((run_dir / "run.json").read_text()) | change
    (run_dir / "run.json").write_text(json.dumps(document))
    with pytest.raises(RunGoneError, match=r"asys-run report|no shared memory|no descriptor"):
        attach_run(run_dir)
    code, text = command(run_top, str(run_dir), "--once")
    assert code == 2
    assert any(said in text for said in ("has ended", "no shared memory", "no descriptor"))


def test_a_run_whose_file_is_broken_is_refused(run_dir: Path) -> None:
    (run_dir / "run.json").write_text("{")
    with pytest.raises(RunGoneError, match="cannot be read"):
        attach_run(run_dir)


def test_q_leaves_and_the_terminal_is_as_before(run_dir: Path) -> None:
    near, far = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "asys_bench.cli.run", "top", str(run_dir)],
        stdin=far,
        stdout=far,
        stderr=far,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"},
        start_new_session=True,
    )
    os.close(far)
    try:
        seen = b""
        while b"q leaves" not in seen:
            seen += os.read(near, 65536)
        os.write(near, b"q")
        while True:
            try:
                more = os.read(near, 65536)
            except OSError:  # the other side has closed
                break
            seen += more
        assert process.wait(60) == 0
        assert b"1,234" in seen
        assert b"\x1b[?1049l" in seen
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.close(near)


def test_it_leaves_by_itself_when_the_run_has_stopped(run_dir: Path, page: StatsPage) -> None:
    page.run_state = RunState.STOPPED
    code, _ = command(run_top, str(run_dir))
    assert code == 0


@pytest.mark.parametrize("interval", ["0", "x", "1000"])
def test_an_interval_out_of_range_is_refused(interval: str) -> None:
    with pytest.raises(SystemExit):
        command(run_top, "--interval", interval)


def test_a_plan_is_drawn_and_a_refused_one_names_the_reason(tmp_path: Path) -> None:
    root = machine(tmp_path, cores=8)
    config = ("--config", "profile_consumer.yaml", "--machine", str(root))
    code, text = command(run_plan, *config, "--set", "resources.pinning=auto")
    assert code == 0
    assert "[ 0 H ]" in text
    assert "trainer-0" in text
    code, text = command(
        run_plan, *config, "--set", "resources.pinning=auto", "--set", "resources.host_threads=8"
    )
    assert code == 1
    assert "refused" in text
    assert "set resources.host_threads to 7 or less" in text
    assert command(run_plan, "--config", "profile_consumer.yaml", "--machine", "/dev")[0] == 2


def machine(root: Path, cores: int) -> Path:
    for cpu in range(cores):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(f"{cpu}\n")
    (root / "sys/devices/system/cpu/online").write_text(f"0-{cores - 1}\n")
    return root


def test_a_run_is_compared_with_the_kernel(run_dir: Path) -> None:
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    plan = {
        "schema": "asys.plan/1",
        "mode": "explicit",
        "notes": [],
        "needs": [["host", "host", 1]],
        "placements": {"host": {"cpus": cpus, "node": None}},
    }
    (run_dir / "plan.json").write_text(json.dumps(plan))
    code, text = command(run_plan, "--run", str(run_dir))
    assert (code, "the kernel agrees" in text) == (0, True)
    plan["placements"] = {"host": {"cpus": "8000", "node": None}}
    (run_dir / "plan.json").write_text(json.dumps(plan))
    code, text = command(run_plan, "--run", str(run_dir))
    assert code == 1
    assert "planned 8000" in text
    (run_dir / "plan.json").unlink()
    assert command(run_plan, "--run", str(run_dir))[0] == 2
