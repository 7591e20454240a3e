"""What a run writes is for its user alone, whatever the umask; nothing listens beyond the machine."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asys_bench.config import load_config, overrides
from asys_bench.contracts.bus import BusPlugin, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.stats import StatsPage
from asys_bench.monitors.prometheus import PrometheusOptions
from asys_bench.registry import registry
from asys_bench.run.run_dir import RunDir
from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.system.files import make_private_folder, replace_file
from asys_bench.system.files.append_file import AppendFile


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_run_directories_and_files_are_private_whatever_the_umask(tmp_path: Path, umask: int):
    run = RunDir.create(tmp_path, "mine")
    run.write_json("run.json", {"a": 1})
    run.write_text("config.yaml", "a: 1\n")
    AppendFile(run.path / "metrics.csv").close()
    make_private_folder(run.path / "a" / "b")
    replace_file(run.path / "a" / "b" / "c", b"x", sync=True)
    trainer = SAETrainer(SAEConfig(d_sae=8, k=2, batch_rows=16, buffer_rows=32))
    trainer.ingest(torch.randn(60, 4), (0, 0, 0))
    trainer.train(max_steps=1, wait_for_fill=False)
    trainer.save(run.path / "sae" / "h")
    found = [run.path, *run.path.rglob("*")]
    assert len(found) >= 12
    for path in found:
        if not path.is_symlink():
            assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_a_file_that_was_open_to_others_is_made_private(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text("a\n")
    path.chmod(0o666)
    AppendFile(path).close()
    assert mode(path) == 0o600


@pytest.mark.parametrize("backend", ["cpp_spmc", "numba_ring", "mp_queue"])
def test_segments_are_private_whatever_the_umask(backend: str, umask: int):
    plugin = registry("backend").get(backend, BusPlugin)
    if plugin.unavailable():
        pytest.skip(str(plugin.unavailable()))
    groups = (GroupSpec("train", Delivery.AT_MOST_ONCE),)
    request = BusRequest(groups=groups, capacity_bytes=1 << 16, options=plugin.options())
    with plugin.build(request) as bus:
        for fd in bus.handle().fds:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                assert stat.S_IMODE(status.st_mode) == 0o600


def test_the_stats_page_is_private(umask: int):
    page = StatsPage.create(["host"])
    assert stat.S_IMODE(os.fstat(page.fd).st_mode) == 0o600
    page.close()


def test_metrics_are_served_to_this_machine_alone_by_default():
    assert PrometheusOptions().address == "127.0.0.1"
    for name in ("profile_consumer.yaml", "profile_hpc.yaml", "base.yaml"):
        monitors = load_config(name, env={}).config.monitors
        for monitor in monitors.values():
            assert monitor.options.get("address", "127.0.0.1") == "127.0.0.1"


def test_a_fork_server_s_socket_has_no_name_that_anybody_could_connect_to_or_that_could_stay():
    """An abstract one lets every user of the machine have it start processes (CVE-2022-42919); a file is
    still there when every process is killed."""
    code = """
import json, os, signal, sys, tempfile, time
from asys_bench.workers.fork_server import ForkServer
from asys_bench.system.liveness import ProcessHandle
os.umask(0)
deep = os.path.join(tempfile.gettempdir(), *["a-long-name-of-a-folder"] * 8)
os.makedirs(deep)
tempfile.tempdir = deep
server = ForkServer((), 5.0)
codes, left = [], []
for _ in range(2):
    started = server.context.Process(target=time.sleep, args=(0,))
    server.start(started).result(60)
    left += os.listdir(deep)
    started.join(60)
    codes.append(started.exitcode)
    handle = ProcessHandle(server.pid)
    handle.kill()
    handle.wait(60)
server.end()
print(json.dumps([codes, left]))
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
            env={**os.environ, "TMPDIR": folder},
        )
    assert json.loads(done.stdout) == [[0, 0], []]


def test_settings_from_the_environment_are_not_taken_with_another_users_rights(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("ASYS__RUN__DIR", "/somewhere/else")
    monkeypatch.setattr(overrides, "is_privileged", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert "ASYS__RUN__DIR" not in overrides.trusted_environment()
        assert str(load_config("profile_consumer.yaml").config.run.dir) != "/somewhere/else"
    assert "ignored ASYS__RUN__DIR" in caplog.text
    monkeypatch.setattr(overrides, "is_privileged", lambda: False)
    assert overrides.trusted_environment()["ASYS__RUN__DIR"] == "/somewhere/else"


def test_privilege_is_what_the_kernel_says_in_the_auxiliary_vector():
    words = array("L", Path("/proc/self/auxv").read_bytes())
    kernel = dict(zip(words[::2], words[1::2], strict=True))
    assert 23 in kernel  # AT_SECURE
    assert overrides.is_privileged() is bool(kernel[23])
