"""`max_age_s`, `min_free_gib`, pins, attempts and several workers: which shards go, and why."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.verify import State
from asys_bench.rundir.verify.archive import ArchiveCheck
from asys_bench.sinks import archiver
from asys_bench.sinks.archive import budget, deletions, open_archive, verify_archive
from asys_bench.sinks.archive.deletions import Deleted, read_deletions
from asys_bench.sinks.archive.pins import pin, pin_of, stored_shards
from asys_bench.system.files.append_file import AppendFile

GIB, KIB = 1 << 30, 1 << 10
ROWS = torch.arange(16 * 256, dtype=torch.float32).reshape(16, 256)
"""16 KiB of values in one packet."""
SMALL = {"shard_rotate_mib": 0.03, "fsync": "never"}
"""Two packets a shard."""
HOOK = "policy.mlp"


def write(rig: Any, worker: Any, seqs: range, **fields: Any) -> None:
    for seq in seqs:
        rig.feed(worker, rig.packet(ROWS, seq, **fields))


def kept(rig: Any) -> list[tuple[int, int]]:
    """(attempt, seq) of the packets that are there."""
    columns = ArchiveView(rig.run_dir).numpy(HOOK, ("attempt", "seq"))
    return sorted(set(zip(columns["attempt"].tolist(), columns["seq"].tolist(), strict=True)))


def closed_bytes(rig: Any) -> int:
    return sum(
        path.stat().st_size + path.with_suffix(".json").stat().st_size
        for path in rig.shards()
        if path.with_suffix(".json").exists()
    )


def gone(rig: Any) -> dict[str, int]:
    """Reason -> packets."""
    of = Deleted.by_reason(read_deletions(rig.run_dir).values())
    return {reason: one.packets for reason, one in of.items()}


def findings(rig: Any, *, repair: bool = False) -> dict[str, Any]:
    check = ArchiveCheck(rig.run_dir, "run-1", repair=repair, keep_torn=True)
    return {one.path: one for one in check.findings()}


def look(worker: Any) -> None:
    worker._next_look = 0.0
    worker.idle()


# Age


def test_a_shard_goes_when_its_newest_row_is_too_old_and_not_before(rig):
    worker = rig.start(max_age_s=100, **SMALL)
    now = time.monotonic_ns() + 10**15  # as old as is said, however long the machine has been up
    worker._budget._clock = lambda: now + 1_000_000
    for seq, age_s in enumerate((160, 101, 140, 99, 50, 1)):
        write(rig, worker, range(seq, seq + 1), timestamp_ns=now - age_s * 10**9)
    worker.close()
    assert [seq for _, seq in kept(rig)] == [0, 1, 2, 3, 4, 5], "each was written in time"
    later = rig.start(1, max_age_s=100, **SMALL)
    later._budget._clock = lambda: now + 1_000_000
    later._budget.adopt()
    assert [seq for _, seq in kept(rig)] == [2, 3, 4, 5], "140 s is in one shard with 99 s"
    assert gone(rig) == {"age": 2}
    assert rig.count("archive_deleted_packets") == 2
    later._budget._clock = lambda: now + 2 * 10**9
    look(later)
    assert [seq for _, seq in kept(rig)] == [4, 5], "time alone is enough"


def test_the_wall_clock_ages_nothing(rig, monkeypatch):
    worker = rig.start(max_age_s=3600, **SMALL)
    write(rig, worker, range(6), timestamp_ns=time.monotonic_ns())
    monkeypatch.setattr(time, "time_ns", lambda: 10**19)
    monkeypatch.setattr(time, "time", lambda: 1e10)
    for path in rig.shards():
        os.utime(path, (0, 0))
    look(worker)
    assert len(kept(rig)) == 6
    assert gone(rig) == {}


def test_a_quiet_hooks_shard_is_closed_after_a_quarter_of_the_age(rig):
    worker = rig.start(max_age_s=100, fsync="never")
    write(rig, worker, range(1))
    (shard,) = worker._shards.values()
    shard.began -= 24
    look(worker)
    assert list(worker._shards.values()) == [shard]
    shard.began -= 2
    look(worker)
    assert not worker._shards
    assert all(one.sidecar is not None for one in stored_shards(rig.run_dir))


# Free space


@dataclass
class Disk:
    """A file system of which others take what they like."""

    root: Path
    size: int
    others: int = 0
    held: int = 0
    """Bytes of deleted files that a reader has open."""

    def statvfs(self, path: Any) -> Any:
        mine = sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())
        free = self.size - self.others - self.held - mine
        return type("Statvfs", (), {"f_bavail": free // KIB, "f_frsize": KIB})


@pytest.fixture
def disk(rig: Any, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(rig.run_dir, 1000 * KIB)
    monkeypatch.setattr(budget.os, "statvfs", made.statvfs)
    return made


def test_the_floor_of_free_space_is_kept_by_deleting_the_oldest(rig, disk):
    worker = rig.start(min_free_gib=500 * KIB / GIB, **SMALL)
    write(rig, worker, range(100))
    assert 500 * KIB - 40 * KIB <= disk.statvfs("").f_bavail * KIB < 600 * KIB
    worker.close()
    seqs = [seq for _, seq in kept(rig)]
    assert seqs == list(range(seqs[0], 100))
    assert gone(rig) == {"free_space": seqs[0]}
    disk.others = 300 * KIB
    look(rig.start(1, min_free_gib=500 * KIB / GIB, **SMALL))
    assert len(kept(rig)) < len(seqs) / 2, "somebody else's files count"


def test_rows_are_dropped_and_counted_where_nothing_is_left_to_delete(rig, disk, caplog):
    worker = rig.start(
        min_free_gib=500 * KIB / GIB, enospc_retry_s=0.01, enospc_hold_s=0.02, **SMALL
    )
    write(rig, worker, range(4))
    disk.others = 900 * KIB
    with caplog.at_level(logging.WARNING):
        write(rig, worker, range(4, 8))
    assert rig.count("archive_dropped_packets") == 4
    assert "min_free_gib" in caplog.text
    disk.others = 0
    worker._patience._next_try = 0.0
    write(rig, worker, range(8, 10))
    worker.close()
    assert [seq for _, seq in kept(rig)][-2:] == [8, 9], "it goes on by itself"


def test_deleting_what_a_reader_has_open_frees_nothing_and_does_not_delete_the_rest(rig, disk):
    worker = rig.start(min_free_gib=100 * KIB / GIB, **SMALL)
    write(rig, worker, range(20))
    before = {path: path.stat().st_size for path in rig.shards()}
    disk.others = disk.statvfs("").f_bavail * KIB - 50 * KIB

    def keep(shard: Path, reason: str, really: Callable[..., None] = worker._budget._record.delete):
        disk.held += shard.stat().st_size
        really(shard, reason)

    worker._budget._record.delete = keep
    look(worker)
    assert len(before) - len(rig.shards()) == 2, "50 KiB are two shards of 36"


# Pins


def test_pinned_shards_stay_and_count_towards_the_budget(rig):
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    write(rig, worker, range(8))
    first = stored_shards(rig.run_dir)[0]
    assert [one.name for one in pin(rig.run_dir, [first.name])] == [first.name]
    write(rig, worker, range(8, 60))
    assert closed_bytes(rig) <= 200 * KIB
    worker.close()
    seqs = [seq for _, seq in kept(rig)]
    assert seqs[: first.sidecar.packets] == list(range(first.sidecar.packets))
    assert seqs[first.sidecar.packets :] == list(range(seqs[first.sidecar.packets], 60))
    assert gone(rig) == {"budget": 60 - len(seqs)}
    assert findings(rig)[f"{ARCHIVE_DIR}/{first.name[:-7]}.pin"].state is State.OK
    pin(rig.run_dir, ["*"], pinned=False)
    worker = rig.start(1, max_gib=200 * KIB / GIB, **SMALL)
    write(rig, worker, range(60, 70))
    worker.close()
    assert 0 not in [seq for _, seq in kept(rig)]


def test_where_pins_fill_the_budget_new_shards_go_as_they_are_closed(rig, caplog):
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    write(rig, worker, range(30))
    pin(rig.run_dir, [one.name for one in stored_shards(rig.run_dir) if one.sidecar])
    with caplog.at_level(logging.ERROR):
        write(rig, worker, range(30, 60))
        worker.close()
    assert caplog.text.count("are pinned and max_gib is") == 1
    assert closed_bytes(rig) <= 200 * KIB
    assert all(one.pinned for one in stored_shards(rig.run_dir))
    assert sum(gone(rig).values()) == 60 - len(kept(rig))


@pytest.mark.parametrize("make", ["link", "folder", "fifo"])
def test_a_pin_is_a_regular_file_and_leads_nowhere(rig, tmp_path, make):
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    write(rig, worker, range(8))
    first = stored_shards(rig.run_dir)[0]
    outside = tmp_path / "outside"
    mark = pin_of(first.path)
    if make == "link":
        mark.symlink_to(outside)
    elif make == "folder":
        mark.mkdir()
    else:
        os.mkfifo(mark)
    with pytest.raises(OSError, match=r"links are not followed|File exists"):
        pin(rig.run_dir, [first.name])
    assert not outside.exists()
    write(rig, worker, range(8, 60))
    assert not first.path.exists(), "it pins nothing"


def test_a_shard_on_record_as_deleted_cannot_be_pinned(rig, monkeypatch):
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    monkeypatch.setattr(deletions, "finish", lambda archive, deletion: True)  # killed in between
    write(rig, worker, range(40))
    recorded = set(read_deletions(rig.run_dir))
    assert recorded
    assert not recorded & {one.name for one in pin(rig.run_dir, ["*"])}


def test_the_pin_of_a_shard_that_is_gone_is_a_leftover(rig):
    worker = rig.start(**SMALL)
    write(rig, worker, range(4))
    worker.close()
    lonely = rig.shards()[0].with_name("archiver-0-7-0.pin")
    lonely.touch()
    name = lonely.relative_to(rig.run_dir).as_posix()
    assert findings(rig)[name].state is State.LEFTOVER
    findings(rig, repair=True)
    assert not lonely.exists()


# Attempts and workers


def test_shards_of_earlier_attempts_count_and_go_first(rig):
    for attempt in range(3):
        # Times of the second attempt are before those of the first: the clock was set back.
        worker = rig.start(attempt=attempt, max_gib=400 * KIB / GIB, **SMALL)
        write(rig, worker, range(15), timestamp_ns=10**9 * (5 - attempt))
        worker.close()
        assert closed_bytes(rig) <= 400 * KIB
    every = [(attempt, seq) for attempt in range(3) for seq in range(15)]
    left = kept(rig)
    assert left == every[-len(left) :]
    assert 10 < len(left) < 30
    per_attempt = [one.attempt for one in read_deletions(rig.run_dir).values()]
    assert set(per_attempt) == {1, 2}, "by the attempt that deleted them"
    last = [one for one in read_deletions(rig.run_dir).values() if one.attempt == 2]
    assert rig.count("archive_deleted_packets") == sum(one.packets for one in last)


def test_a_run_that_goes_on_with_fewer_workers_keeps_the_budget_with_all_shards(rig):
    workers = [
        rig.start(name=f"archiver-{n}", members=2, max_gib=400 * KIB / GIB, **SMALL) for n in (0, 1)
    ]
    for seq in range(20):
        write(rig, workers[seq % 2], range(seq, seq + 1))
    workers[0].close()
    for shard in workers[1]._shards.values():
        shard.abandon()  # killed
    one = rig.start(attempt=1, max_gib=200 * KIB / GIB, **SMALL)
    assert closed_bytes(rig) <= 200 * KIB
    assert all(shard.sidecar is not None for shard in stored_shards(rig.run_dir)), "all are closed"
    seqs = [seq for _, seq in kept(rig)]
    assert seqs[0] == 9, "shards of two packets: 8 and 10 of one worker, 9 and 11 of the other"
    assert seqs[1:] == list(range(11, 20)), "the oldest of both"
    one.close()


def test_two_sinks_have_a_budget_each(rig):
    small = rig.start(name="archiver-0", max_gib=100 * KIB / GIB, **SMALL)
    write(rig, small, range(20))
    large = rig.start(name="archiver-1", **SMALL)
    large._worker = "other-0"
    write(rig, large, range(20), hook=2)
    write(rig, small, range(20, 30))
    small.close()
    large.close()
    assert len(ArchiveView(rig.run_dir).numpy("value/net:0")["seq"]) == 20 * 16


def test_a_worker_does_not_wait_for_a_stopped_one_that_has_the_lock_and_catches_up_later(
    rig, monkeypatch
):
    monkeypatch.setattr(budget, "LOCK_WAIT_S", 0.01)
    monkeypatch.setattr(deletions.deciding.__wrapped__, "__defaults__", (lambda: None, 0.01))
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    fd = os.open(rig.run_dir / ARCHIVE_DIR / ".lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    write(rig, worker, range(40))
    assert len(kept(rig)) == 40, "it writes on"
    with pytest.raises(OSError, match="try again"):
        pin(rig.run_dir, ["*"])
    os.close(fd)
    look(worker)
    assert closed_bytes(rig) <= 200 * KIB


def test_a_disk_too_full_for_the_record_gets_room_from_the_shard_itself(rig, monkeypatch):
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    write(rig, worker, range(8))
    really, refused = AppendFile.write, []

    def write_line(file: AppendFile, text: str) -> None:
        if not refused or len(refused) < 3:
            refused.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")
        really(file, text)

    monkeypatch.setattr(AppendFile, "write", write_line)
    write(rig, worker, range(8, 60))
    worker.close()
    assert len(refused) == 3
    assert closed_bytes(rig) <= 200 * KIB
    assert gone(rig) == {"budget": 60 - len(kept(rig))}
    assert rig.count("archive_deleted_packets") == 60 - len(kept(rig))
    assert {one.state for one in findings(rig).values()} == {State.OK}


def test_every_file_of_an_archive_with_limits_is_known_to_verify(rig):
    worker = rig.start(max_gib=200 * KIB / GIB, max_age_s=1e6, min_free_gib=1e-6, **SMALL)
    write(rig, worker, range(40))
    pin(rig.run_dir, [stored_shards(rig.run_dir)[0].name])
    found = findings(rig)
    assert {one.state for one in found.values()} <= {State.OK, State.BEING_WRITTEN}
    (record,) = [one for name, one in found.items() if name.endswith(".deleted.jsonl")]
    assert "were deleted to keep max_gib" in record.detail
    worker.close()
    assert all(one.ok for one in verify_archive(rig.run_dir))


def test_a_folder_that_became_a_link_ends_no_worker(rig, tmp_path, caplog):
    worker = rig.start(max_gib=200 * KIB / GIB, **SMALL)
    write(rig, worker, range(4))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (rig.run_dir / ARCHIVE_DIR / ".lock").unlink()
    (rig.run_dir / ARCHIVE_DIR / ".lock").symlink_to(elsewhere / "lock")
    with caplog.at_level(logging.ERROR):
        write(rig, worker, range(4, 40))
    assert caplog.text.count("cannot be decided") == 1
    assert list(elsewhere.iterdir()) == []


def test_a_hook_whose_rows_were_all_deleted_says_so(rig):
    worker = rig.start(max_age_s=1e-9, **SMALL)
    write(rig, worker, range(6))
    worker.close()
    look(rig.start(1, max_age_s=1e-9, **SMALL))
    with pytest.raises(KeyError, match=r"all 96 rows of hook 'policy\.mlp' were deleted"):
        open_archive(rig.run_dir).shards(HOOK)


def test_sidecars_of_an_earlier_version_are_read_and_their_shards_go_by_their_packets(rig):
    worker = rig.start(**SMALL)
    write(rig, worker, range(20))
    worker.close()
    for path in rig.shards():
        sidecar = path.with_suffix(".json")
        said = json.loads(sidecar.read_text()) | {"format": "asys.archive.sidecar/1"}
        for name in ("last_ns", "first_step", "last_step", "encoded"):
            del said[name]
        sidecar.write_text(json.dumps(said))
    assert {one.state for one in findings(rig).values()} == {State.OK}
    worker = rig.start(1, max_gib=200 * KIB / GIB, max_age_s=1e-9, **SMALL)
    seqs = [seq for _, seq in kept(rig)]
    assert seqs == list(range(seqs[0], 20)), "nobody knows how old they are"
    assert gone(rig) == {"budget": seqs[0]}
    worker.close()


def test_an_archive_folder_that_somebody_removed_ends_no_worker(rig):
    worker = rig.start(max_gib=1.0, max_age_s=1e6, min_free_gib=1e-6, **SMALL)
    write(rig, worker, range(4))
    shutil.rmtree(rig.run_dir / ARCHIVE_DIR)
    write(rig, worker, range(4, 12))
    look(worker)
    worker.close()
    assert 11 in [seq for _, seq in kept(rig)]


# A store


def test_a_run_that_has_a_store_closes_its_shards_after_a_while(rig, monkeypatch):
    monkeypatch.setattr(archiver, "STORED_SHARD_S", 0.0)
    for uri, closed in ((None, 0), ("file:///copy", 1)):
        worker = rig.start(**{**SMALL, "shard_rotate_mib": 256})
        worker._context = replace(worker._context, config={"storage": {"uri": uri}})
        write(rig, worker, range(1))
        look(worker)
        assert len([p for p in rig.shards() if p.with_suffix(".json").exists()]) == closed
        worker.close()
        for shard in rig.shards():
            shard.unlink()
