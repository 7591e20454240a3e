"""A copy in a folder: what it holds, when it holds it, and what a kill at each step leaves."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import time
from pathlib import Path

import pytest

from asys_bench.monitors.upload import uploader as uploads
from asys_bench.monitors.upload.lock import UploadBusyError, UploadLock
from asys_bench.monitors.upload.uploader import DOCUMENT_S, StoreTakenError, Uploader
from asys_bench.sinks.archive import deletions
from asys_bench.store.objects import Backoff, ObjectStore, Reason, StoreError

_RUNS = runpy.run_path(str(Path(__file__).parent / "conftest.py"))
files_of, write_document, write_run = (
    _RUNS[n] for n in ("files_of", "write_document", "write_run")
)


class Steps:
    """A store that calls `at(number)` before, in the middle of and after each operation."""

    def __init__(self, store, at):
        self.location, self._store, self._at, self.count = store.location, store, at, 0

    def step(self):
        self.count += 1
        self._at(self.count)

    def put(self, key, pieces):
        self.step()

        def each():
            for piece in pieces:
                yield piece
                self.step()

        self._store.put(key, each())
        self.step()

    def pieces(self, key):
        for piece in self._store.pieces(key):
            self.step()
            yield piece

    def __getattr__(self, name):
        def call(*arguments):
            self.step()
            found = getattr(self._store, name)(*arguments)
            self.step()
            return found

        return call


def test_a_copy_holds_every_file_of_the_run_and_says_that_it_is_complete(uploader, run, copy):
    assert uploader.send(final=True)
    assert copy.files() == files_of(run)
    assert copy.manifest["complete"] is True
    assert uploader.progress.pending_files == 0
    assert uploader.progress.files == len(files_of(run))


def test_what_is_sent_is_not_sent_again(uploader, run, copy):
    uploader.send(final=True)
    before = copy.manifest
    for again in (uploader, Uploader(run, copy.store)):
        files = again.progress.files
        assert again.send(final=True)
        assert again.progress.files == files or again.progress.files == 0
    assert copy.manifest == before


def test_a_run_that_was_moved_to_another_disk_is_known_again_by_its_bytes(uploader, run, copy):
    uploader.send(final=True)
    for file in run.rglob("*"):
        if file.is_file():
            os.utime(file, (5, 5))
    moved = Uploader(run, copy.store)
    assert moved.send(final=True)
    assert moved.progress.bytes == 0
    assert copy.files() == files_of(run)


def test_a_shard_that_is_being_written_is_left_out_until_it_is_closed(uploader, run, copy):
    shard = run / "archive" / "policy.mlp" / "archive-0-0-1.arrows"
    sidecar = shard.with_suffix(".json").rename(run / "away")
    (run / "away.tmp").write_text("a half file")
    assert uploader.send()
    assert f"archive/policy.mlp/{shard.name}" not in copy.files()
    assert uploader.progress.open_shards == 1
    sidecar.rename(shard.with_suffix(".json"))
    (run / "away.tmp").unlink()
    assert uploader.send(final=True)
    assert copy.files() == files_of(run)


def test_a_file_that_changes_is_read_whole_by_whoever_has_the_manifest_before(uploader, run, copy):
    uploader.send(final=True)
    stored = copy.manifest["files"]["run.json"]
    before = copy.read(stored["object"])
    write_document(run, result=None)
    uploader.send(final=True)
    assert copy.read(stored["object"]) == before
    assert copy.files()["run.json"] == (run / "run.json").read_bytes()
    write_document(run, result={"steps": 2})
    uploader.send(final=True)
    assert stored["object"] not in copy.objects()
    assert copy.files() == files_of(run)


def test_a_file_that_changes_all_the_time_is_sent_now_and_then(uploader, run, copy, monkeypatch):
    uploader.send()
    (run / "metrics.csv").write_text("a,b\n" + "1,2\n" * 30 + "3,")
    uploader.send()
    assert len(copy.files()["metrics.csv"]) == 4 + 4 * 20
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + int((DOCUMENT_S + 1) * 1e9))
    uploader.send()
    assert len(copy.files()["metrics.csv"]) == 4 + 4 * 30, "whole lines only while the run goes on"
    uploader.send(final=True)
    assert copy.files() == files_of(run)


def test_shards_stay_when_the_run_deletes_its_own_and_its_record_does_not_hide_them(
    uploader, run, copy, caplog
):
    uploader.send()
    whole = copy.files()
    shard = run / "archive" / "policy.mlp" / "archive-0-0-0.arrows"
    lines = [{"shard": f"policy.mlp/archive-0-0-{n}.arrows", "reason": "budget"} for n in (0, 7)]
    record = run / "archive" / "archive-0.deleted.jsonl"
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shard.unlink()
    shard.with_suffix(".json").unlink()
    uploader.send(final=True)
    files = copy.files()
    assert {name for name in whole if name.startswith("archive/")} <= files.keys()
    told = files["archive/archive-0.deleted.jsonl"].decode()
    assert [json.loads(line) for line in told.splitlines()] == lines[1:]
    assert uploader.progress.missed_shards == 1
    uploader.send(final=True)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said.startswith("1 shards were deleted here")


def test_checkpoints_and_documents_that_the_run_removed_leave_the_copy(uploader, run, copy):
    uploader.send()
    step = run / "sae" / "policy.mlp" / "step_000000004"
    step.rename(step.with_name("step_000000009"))
    (run / "metrics.csv").unlink()
    uploader.send(final=True)
    assert copy.files() == files_of(run)
    (run / "plan.json").write_text("{}")
    uploader.send(final=True)
    assert not any("step_000000004" in name for name in copy.objects())


def test_a_folder_that_has_lost_its_run_file_takes_nothing_out_of_the_copy(uploader, run, copy):
    uploader.send()
    whole = copy.files()
    for file in run.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.unlink()
    uploader.send()
    assert copy.files() == whole


def test_another_run_is_refused_and_changes_nothing(uploader, copy, tmp_path):
    uploader.send(final=True)
    before = copy.files()
    others = (write_run(tmp_path / "b", "run-2"), write_run(tmp_path / "c", "run-1", began=2_000))
    for other, why in zip(others, ("the run 'run-1'", "another run of this id"), strict=True):
        with pytest.raises(StoreTakenError, match=why) as error:
            Uploader(other, copy.store).send()
        assert "{run_id}" in str(error.value)
    assert copy.files() == before


def test_two_processes_that_send_one_run_stop_instead_of_undoing_each_other(uploader, run, copy):
    uploader.send()
    other = Uploader(run, copy.store)
    (run / "plan.json").write_text("{}")
    other.send()
    (run / "histograms.json").write_text("{}")
    with pytest.raises(StoreTakenError, match="another process sends to it"):
        uploader.send()
    assert "plan.json" in copy.files()
    uploader.send()  # it reads what is there, and goes on from it
    assert copy.files() == files_of(run)


def test_one_process_of_a_machine_sends_a_run(run):
    lock = UploadLock(run)
    with pytest.raises(UploadBusyError):
        UploadLock(run)
    lock.release()
    UploadLock(run).release()


def test_a_store_that_gives_back_other_bytes_is_found_out(run, copy):
    class Rotten(ObjectStore):
        def pieces(self, key):
            for piece in super().pieces(key):
                yield piece[:-1] + b"?" if "arrows" in key else piece

    uploader = Uploader(run, Rotten(copy.store.location))
    with pytest.raises(StoreError) as error:
        uploader.send()
    assert error.value.reason is Reason.CHANGED
    assert not any(name.endswith(".arrows") for name in copy.files())


def test_a_full_or_forbidden_folder_says_so_and_the_rest_follows_when_it_can(
    run, copy, monkeypatch
):
    store = ObjectStore(copy.store.location)
    put, full = store.put, True

    def refuse(key, pieces):
        if full and "arrows" in key:
            raise StoreError.of(key, OSError(28, "No space left on device"))
        put(key, pieces)

    store.put = refuse
    uploader = Uploader(run, store)
    with pytest.raises(StoreError) as error:
        uploader.send()
    assert error.value.reason is Reason.FULL
    assert uploader.progress.pending_files
    full = False
    assert uploader.send(final=True)
    assert copy.files() == files_of(run)


def test_pauses_double_up_to_a_minute_and_differ(monkeypatch):
    backoff = Backoff()
    pauses = [backoff.next_s() for _ in range(40)]
    bounds = [min(60.0, 0.5 * 2.0**n) for n in range(40)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, bounds, strict=True))
    assert len(set(pauses)) == 40
    backoff.reset()
    assert backoff.next_s() <= 0.5


# Killed at every step, by SIGKILL in a process of its own.


def between(function, step):
    def stepping(*arguments, **named):
        step()
        found = function(*arguments, **named)
        step()
        return found

    return stepping


def send_and_die(run, copy, at, **options):
    """Send in a child that kills itself at step `at`; its exit status, and the steps that it made."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:

            def step(number):
                if number == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            store = Steps(ObjectStore(copy.store.location), step)
            for name in ("finish", "remove", "AppendFile"):  # what a deletion here is made of
                setattr(deletions, name, between(getattr(deletions, name), store.step))
            Uploader(run, store, **options).send(final=True)
            os.write(write, str(store.count).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    steps = os.read(read, 100)
    os.close(read)
    return status, int(steps or 0)


EVERY = pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.rest)])
"""So many steps lie between two kills."""


@EVERY
def test_killed_at_every_step_the_copy_is_whole_and_the_next_one_finishes_it(tmp_path, every):
    steps = 0
    for at in range(1, 400, every):
        run, copy = write_run(tmp_path / f"{at}" / "run-1"), _RUNS["Copy"](tmp_path / f"s{at}")
        before = files_of(run)
        status, steps = send_and_die(run, copy, at)
        if steps:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        if (copy.folder / "manifest.json").exists():
            assert copy.files().items() <= before.items()
        assert files_of(run) == before
        resumed = Uploader(run, copy.store)
        assert resumed.send(final=True)
        assert copy.files() == before
        assert copy.objects() == {"manifest.json"} | {
            one["object"] for one in copy.manifest["files"].values()
        }, "what the killed one left behind is gone"
    assert at - every <= steps < at
    assert steps > 50


@EVERY
def test_killed_while_it_deletes_here_no_shard_is_lost_and_each_is_on_record_once(tmp_path, every):
    for at in range(1, 400, every):
        run, copy = write_run(tmp_path / f"{at}" / "run-1"), _RUNS["Copy"](tmp_path / f"s{at}")
        before = files_of(run)
        steps = send_and_die(run, copy, at, delete_after_s=0.0)[1]
        gone = {name for name in before if not (run / name).exists()}
        if gone:
            assert gone <= copy.files().keys()
        resumed = Uploader(run, copy.store, delete_after_s=0.0)
        resumed.send(final=True)
        resumed.send(final=True)
        archived = {name for name in before if name.startswith("archive/")}
        assert {name: copy.files()[name] for name in archived} == {
            name: before[name] for name in archived
        }
        assert not any((run / name).exists() for name in archived)
        assert {one.reason for one in deletions.read_deletions(run).values()} == {"stored"}
        assert len((run / "archive" / "storage.deleted.jsonl").read_text().splitlines()) == 2
        assert copy.files()["archive/storage.deleted.jsonl"] == b""
        if steps:
            break
    assert steps > 60


def test_a_pinned_shard_stays_here_though_the_copy_has_it(run, copy):
    pinned = run / "archive" / "policy.mlp" / "archive-0-0-0.arrows"
    pinned.with_suffix(".pin").touch()
    uploader = Uploader(run, copy.store, delete_after_s=0.0)
    assert uploader.send(final=True)
    assert pinned.exists()
    assert not pinned.with_name("archive-0-0-1.arrows").exists()
    assert uploader.progress.deleted_shards == 1
    assert deletions.read_deletions(run).keys() == {"policy.mlp/archive-0-0-1.arrows"}


def test_the_next_attempt_of_a_run_goes_on_with_its_copy(uploader, run, copy):
    assert uploader.send(final=True)
    (run / "summary.json").write_text("{}")
    first = {"attempt": 0, "started_unix_ns": 1_000}
    write_document(run, result=None, attempts=[first, {"attempt": 1, "started_unix_ns": 9_000}])
    shard = run / "archive" / "policy.mlp" / "archive-0-1.0-0.arrows"
    shard.write_bytes(b"of the second attempt")
    shard.with_suffix(".json").write_text("{}")
    second = Uploader(run, copy.store)
    assert second.send()
    assert copy.manifest["complete"] is False
    (run / "summary.json").unlink()  # it said how the first attempt ended
    write_document(run, attempts=[first, {"attempt": 1, "started_unix_ns": 9_000}])
    assert second.send(final=True)
    assert copy.files() == files_of(run)
    assert copy.manifest["complete"] is True


def test_a_shard_is_not_there_before_the_attempt_that_it_is_of(uploader, run, copy, monkeypatch):
    """Else the next one, on another machine, would have its number and write the same keys."""
    uploader.send()
    write_document(run, attempts=[{"attempt": 0, "started_unix_ns": 1_000}, {"attempt": 1}])
    shard = run / "archive" / "policy.mlp" / "archive-1.0-0.arrows"
    shard.write_bytes(b"x" * 100)
    shard.with_suffix(".json").write_text("{}")
    send_file, refused = uploader._send_file, []

    def without_run_json(unit, file, final):
        if unit.name == "run.json" and not refused:
            refused.append(unit)
            raise uploads._LocalError("it was written to meanwhile")
        return send_file(unit, file, final)

    monkeypatch.setattr(uploader, "_send_file", without_run_json)
    assert not uploader.send()
    assert f"archive/policy.mlp/{shard.name}" not in copy.files()
    assert uploader.send(), "half a minute has not passed"
    assert f"archive/policy.mlp/{shard.name}" in copy.files()
    assert len(json.loads(copy.files()["run.json"])["attempts"]) == 2
