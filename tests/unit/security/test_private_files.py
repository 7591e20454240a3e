"""What a run writes is for its user alone, whatever the umask; nothing listens beyond the machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asys_bench.config import load_config
from asys_bench.contracts.bus import BusPlugin, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.stats import StatsPage
from asys_bench.monitors.append_file import AppendFile
from asys_bench.monitors.prometheus import PrometheusOptions
from asys_bench.pipeline.rundir import RunDir
from asys_bench.registry import registry
from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.storage import make_private_folder, replace_file


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
