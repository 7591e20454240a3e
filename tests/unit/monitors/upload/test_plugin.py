"""The worker that sends while the run goes on: it counts, waits for nobody past the deadline, and says
what refuses."""

from __future__ import annotations

import os
import runpy
import threading
import time
from pathlib import Path

import pytest

from asys_bench.config import ConfigError, config_from_data
from asys_bench.config.assembly import UPLOADER, plan_workers
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.monitor import MonitorContext
from asys_bench.contracts.stats import RunState, StatsPage
from asys_bench.monitors.upload import plugin as plugins
from asys_bench.monitors.upload.plugin import UploadMonitor, UploadOptions
from asys_bench.store.objects import ObjectStore

_RUNS = runpy.run_path(str(Path(__file__).parent / "conftest.py"))
files_of = _RUNS["files_of"]


class Rig:
    def __init__(self, run: Path, uri: str) -> None:
        self.page = StatsPage.create(["host", UPLOADER])
        self.left_s, self.beats = float("inf"), 0
        self.monitor = UploadMonitor(UploadOptions(uri=uri))
        self.monitor.open(
            MonitorContext(
                run, "run-1", self.page, lambda: BusAccount(0, 0, {}, ()), {}, "step", False,
                slot=self.page.slot(UPLOADER), heartbeat=self._beat, time_left_s=lambda: self.left_s,
            )
        )  # fmt: skip

    def _beat(self) -> None:
        self.beats += 1

    def count(self, name: str) -> float:
        found = self.page.slot(UPLOADER).metrics()
        return sum(metric.value for full, metric in found.items() if full.startswith(name))

    def wait(self, what) -> None:
        until = time.monotonic() + 60
        while not what():
            assert time.monotonic() < until
            self.monitor.tick(RunState.RUNNING)
            time.sleep(0.01)


@pytest.fixture
def rig(run, copy):
    made = Rig(run, f"file://{copy.folder.parent}/{{run_id}}")
    yield made
    made.monitor.close()
    made.monitor._thread.join(60)
    made.page.close()


def test_it_sends_while_the_run_goes_on_and_the_rest_when_it_has_stopped(rig, run, copy):
    rig.wait(lambda: rig.count("storage_pending_files") == 0 and rig.count("storage_files") > 5)
    assert copy.files() == files_of(run)
    (run / "run.json").write_text((run / "run.json").read_text() + " ")
    rig.left_s = 30.0
    rig.monitor.tick(RunState.STOPPED)
    assert copy.files() == files_of(run)
    assert rig.count("storage_files") == len(files_of(run)) + 1
    assert rig.count("storage_bytes") >= sum(map(len, files_of(run).values()))


def test_what_workers_close_when_their_host_is_gone_is_sent_at_once(rig, run, copy, monkeypatch):
    """They have 4.5 s, and a look each 5 s would come too late."""
    monkeypatch.setattr(plugins, "INTERVAL_S", 60.0)
    rig.wait(lambda: rig.count("storage_pending_files") == 0 and rig.count("storage_files") > 5)
    rig.left_s = 20.0
    shard = run / "archive" / "policy.mlp" / "archive-0-0-9.arrows"
    shard.write_bytes(b"last rows")
    rig.wait(lambda: rig.monitor._uploader.progress.open_shards == 1)
    shard.with_suffix(".json").write_text("{}")
    rig.wait(lambda: f"archive/policy.mlp/{shard.name}" in copy.files())
    rig.monitor.tick(RunState.STOPPED)
    assert copy.files() == files_of(run)


def test_a_store_that_does_not_answer_holds_nobody_up_at_the_end(run, copy, monkeypatch, caplog):
    asked, answer = threading.Event(), threading.Event()

    def put(self, key, pieces):
        asked.set()
        answer.wait(120)

    monkeypatch.setattr(ObjectStore, "put", put)
    rig = Rig(run, f"file://{copy.folder}")
    assert asked.wait(60)
    left_s = [2.0]

    def time_left_s():  # each time that it is asked is a twentieth of a second
        left_s[0] -= 0.05
        return left_s[0]

    rig.monitor._context.__dict__["time_left_s"] = time_left_s
    rig.monitor.tick(RunState.STOPPED)
    assert 0 < left_s[0] < plugins.LEAVE_S
    assert rig.beats > 5
    rig.monitor.close()
    answer.set()
    rig.monitor._thread.join(60)
    rig.page.close()
    assert files_of(run)


def test_what_refuses_is_counted_by_reason_and_said_once(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("asys_bench.store.objects.FIRST_PAUSE_S", 0.01)
    place = tmp_path / "store"
    place.write_text("a file, where a folder would be")
    before = files_of(run)
    rig = Rig(run, f"file://{place}/run-1")
    rig.wait(lambda: rig.count("storage_errors") >= 2)
    place.unlink()
    rig.wait(
        lambda: rig.count("storage_files") == len(before) and "takes files again" in caplog.text
    )
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([one for one in said if "are kept here" in one]) == 1
    assert len([one for one in said if "takes files again" in one]) == 1
    rig.monitor.close()
    rig.monitor._thread.join(60)
    rig.page.close()
    assert files_of(run) == before


def test_a_thread_that_hangs_ends_the_worker_so_that_it_is_started_again(rig, monkeypatch):
    rig.wait(lambda: rig.count("storage_files") > 5)
    monkeypatch.setattr(plugins, "STUCK_S", -1.0)
    with pytest.raises(RuntimeError, match="hangs"):
        rig.monitor.tick(RunState.RUNNING)


def config(**storage):
    return config_from_data(
        {"host": {"kind": "synthetic"}, "hooks": [{"match": "*"}], "storage": storage}
    )


def test_a_run_with_a_uri_has_an_uploader_and_one_without_has_none():
    _, workers = plan_workers(config(), ["a"])
    assert UPLOADER not in [worker.name for worker in workers]
    _, workers = plan_workers(
        config(uri="s3://bucket/runs/{run_id}", delete_local_after_s=5), ["a"]
    )
    (uploader,) = (worker for worker in workers if worker.name == UPLOADER)
    assert (uploader.role, uploader.plugin) == ("monitor", "upload")
    assert uploader.nice == config().resources.worker_nice
    assert uploader.options == {"uri": "s3://bucket/runs/{run_id}", "delete_local_after_s": 5.0}


@pytest.mark.parametrize(
    "storage", [{"uri": "ftp://a/b"}, {"uri": "s3://b"}, {"delete_local_after_s": -1}]
)
def test_a_section_that_cannot_be_is_refused(storage):
    with pytest.raises(ConfigError):
        config(**storage)


def test_a_second_process_of_the_run_waits_for_the_first_ones_lock(rig, run):
    rig.wait(lambda: rig.count("storage_files") > 5)
    assert os.path.lexists(run / ".upload.lock")
    other = Rig(run, rig.monitor._options.uri)
    time.sleep(0.3)
    other.monitor.tick(RunState.RUNNING)
    assert other.count("storage_files") == 0
    other.monitor.close()
    other.monitor._thread.join(60)
    other.page.close()
