"""Killed writers, redelivered packets and full disks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from asys_bench.sinks.archive import open_archive, verify_archive

HERE = Path(__file__).parent
SOAK = os.environ.get("ASYS_SOAK") == "1"
KILLS = 1000 if SOAK else 10


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.parametrize("values", ["keep", "encoded"])
def test_writers_killed_at_random_moments_lose_their_open_batch_at_most(tmp_path, values):
    storm, rig = HERE / "kill_storm.py", HERE / "conftest.py"
    command = [sys.executable, storm, rig, tmp_path, KILLS, 1, values]
    limit_s = 1200 if SOAK else 400
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    found = json.loads(done.stdout)
    assert found["kills"] == KILLS
    assert found["acknowledged packets"] > 0
    assert found["rows"] >= 64 * found["acknowledged packets"]


def test_redelivered_packets_are_written_once(rig):
    first = rig.start(0, rows_per_batch=4)
    packets = [rig.packet(torch.full((6, 2), float(seq)), seq, 1 + seq % 2) for seq in range(6)]
    rig.feed(first, *packets)
    rig.feed(first, *packets[:2])
    assert rig.count("archive_duplicates_skipped") == 2
    first.close()
    second = rig.start(1)
    rig.feed(second, *packets, rig.packet(torch.ones(6, 2), 6))
    second.close()
    assert rig.count("archive_duplicates_skipped") == 8
    assert sum(rig.table(path).num_rows for path in rig.shards()) == 42


def test_a_packet_torn_between_batches_is_continued_where_it_ended(rig):
    first = rig.start(0, rows_per_batch=4)
    packet = rig.packet(torch.arange(20.0).reshape(10, 2), 0)
    rig.feed(first, packet)
    (path,) = rig.shards()
    for shard in first._shards.values():
        os.close(shard._fd)  # as in a killed process: no end of stream, and the lock is gone
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    second = rig.start(1)
    assert list(path.parent.glob("*.torn"))
    rig.feed(second, packet)
    second.close()
    (table,) = (
        pa.Table.from_batches(open_archive(rig.run_dir).batches(hook)) for hook in ["policy.mlp"]
    )
    assert table["row"].to_pylist() == list(range(10))
    assert [rig.table(path).num_rows for path in rig.shards()] == [8, 2]


def test_rows_that_two_workers_archived_are_read_once(rig):
    first, other = rig.start(), rig.start(name="archiver-1")
    for seq in range(3):
        rig.feed(first, rig.packet(torch.ones(4, 2), seq))
    for seq in range(2, 5):
        rig.feed(other, rig.packet(torch.ones(4, 2), seq))
    first.close()
    other.close()
    assert sum(rig.table(path).num_rows for path in rig.shards()) == 24
    rows = pa.Table.from_batches(open_archive(rig.run_dir).batches("policy.mlp"))
    assert rows["seq"].to_pylist() == [seq for seq in range(5) for _ in range(4)]


def test_a_restart_in_the_same_incarnation_never_writes_over_a_shard(rig):
    for seq in range(3):
        worker = rig.start(0)
        rig.feed(worker, rig.packet(torch.ones(1, 2), seq))
        worker.close()
    assert [path.name for path in rig.shards()] == [f"archiver-0-0-{n}.arrows" for n in range(3)]


def test_leftovers_of_a_killed_creation_are_removed_and_those_of_others_stay(rig):
    folder = rig.run_dir / "archive" / "policy.mlp"
    folder.mkdir(parents=True)
    mine, theirs = folder / ".archiver-0-0-0.arrows.tmp", folder / ".archiver-0-x-0-0.arrows.tmp"
    mine.touch()
    theirs.touch()
    rig.start(1).close()
    assert (mine.exists(), theirs.exists()) == (False, True)


def test_a_damaged_shard_of_the_predecessor_does_not_stop_the_next(rig, caplog):
    first = rig.start()
    rig.feed(first, rig.packet(torch.ones(1, 2), 0))
    first.close()
    path = rig.shards()[0]
    path.with_suffix(".json").unlink()
    path.write_bytes(path.read_bytes().replace(b"asys.archive/3", b"asys.archive/9"))
    second = rig.start(1)
    rig.feed(second, rig.packet(torch.ones(1, 2), 1))
    second.close()
    assert "cannot take over" in caplog.text


class FullDisk:
    """pwritev that writes a part and then finds no space, until `full` is cleared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self._part, self._real = True, False, os.pwritev
        monkeypatch.setattr(os, "pwritev", self)

    def __call__(self, fd, buffers, offset):
        if not self.full:
            return self._real(fd, buffers, offset)
        self._part = not self._part
        if not self._part:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real(fd, [buffers[0][:3]], offset)


@pytest.mark.parametrize("packets", [1, 3])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_full_disk_pauses_the_archiver_until_space_returns(
    rig, monkeypatch, caplog, packets, earlier
):
    worker = rig.start(enospc_retry_s=0.01)
    for seq in range(earlier):
        rig.feed(worker, rig.packet(torch.ones(8, 4), seq))
    disk = FullDisk(monkeypatch)
    sizes = set()

    def on_beat():
        if disk.full:
            sizes.update(path.stat().st_size for path in rig.shards())
        if rig.beats > 12:
            disk.full = False

    rig.on_beat, rig.beats = on_beat, 0
    rig.feed(worker, *(rig.packet(torch.ones(8, 4), 10 + seq) for seq in range(packets)))
    worker.close()
    assert rig.table(rig.shards()[0]).num_rows == 8 * (packets + earlier)
    assert len(sizes) <= earlier, "a partial batch was left in the file during the pause"
    assert rig.count("archive_write_errors") > 2
    assert rig.count("archive_paused_ns") > 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert all(found.ok and found.closed for found in verify_archive(rig.run_dir))


def test_a_disk_that_stays_full_gives_the_lease_back_at_the_drain_deadline(rig, monkeypatch):
    worker = rig.start(enospc_retry_s=0.01)
    rig.feed(worker, rig.packet(torch.ones(8, 4), 0))
    FullDisk(monkeypatch)
    deadline = time.monotonic() + 0.6
    rig.time_left_s = lambda: deadline - time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        rig.feed(worker, rig.packet(torch.ones(8, 4), 1))
    worker.close()
    assert rig.table(rig.shards()[0]).num_rows == 8
    assert verify_archive(rig.run_dir)[0].ok


def test_errors_that_waiting_does_not_mend_end_the_worker_and_leave_no_partial_batch(
    rig, monkeypatch
):
    worker = rig.start()
    rig.feed(worker, rig.packet(torch.ones(8, 4), 0))

    def broken(fd, buffers, offset):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(OSError, match="too large"):
        rig.feed(worker, rig.packet(torch.ones(8, 4), 1))
    assert verify_archive(rig.run_dir)[0].ok


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "io_error"),
        (errno.EROFS, "read_only"),
    ],
)
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_disk_that_refuses_for_long_costs_counted_packets_and_the_archive_goes_on(
    rig, monkeypatch, caplog, number, reason, earlier
):
    worker = rig.start(enospc_retry_s=0.02, enospc_hold_s=0.05, rows_per_batch=4)
    for seq in range(earlier):
        rig.feed(worker, rig.packet(torch.ones(8, 4), seq))
    real = os.pwritev

    def refuse(fd, buffers, offset):
        real(fd, [memoryview(buffers[0])[:3]], offset)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", refuse)
    for seq in range(10, 16):
        rig.feed(worker, rig.packet(torch.ones(8, 4), seq, 1 + seq % 2))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    monkeypatch.setattr(os, "pwritev", real)
    seq = 20
    while len(caplog.records) < 2:  # the next attempt is due at its time
        rig.feed(worker, rig.packet(torch.ones(8, 4), seq))
        seq += 1
        time.sleep(0.01)
    rig.feed(worker, *(rig.packet(torch.ones(8, 4), seq + hook, hook) for hook in (1, 2)))
    worker.close()
    assert "goes on" in caplog.records[1].getMessage()
    names = rig.page.slot("archiver-0").metrics()
    packets = names[f"archive_dropped_packets{{reason={reason}}}"].value
    rows = names[f"archive_dropped_rows{{reason={reason}}}"].value
    assert packets >= 6
    assert rows == 8 * packets, "a packet was dropped in part"
    assert all(found.ok and found.closed for found in verify_archive(rig.run_dir))
    kept = sum(rig.table(path).num_rows for path in rig.shards())
    fed = earlier + 6 + (seq - 20) + 2
    assert kept + rows == 8 * fed, "every row is in the archive or counted"
    assert rig.count("archive_packets") + packets == fed


def test_a_shard_that_a_full_disk_keeps_open_is_closed_once_there_is_space(rig, monkeypatch):
    worker = rig.start(enospc_retry_s=0.01, enospc_hold_s=0, shard_rotate_mib=0.001)
    rig.feed(worker, rig.packet(torch.ones(80, 4), 0))
    disk = FullDisk(monkeypatch)
    rig.feed(worker, rig.packet(torch.ones(80, 4), 1))
    disk.full = False
    time.sleep(0.03)
    rig.feed(worker, rig.packet(torch.ones(80, 4), 2))
    worker.close()
    assert [rig.table(path)["seq"].to_pylist()[0] for path in rig.shards()] == [0, 2]
    assert rig.count("archive_dropped_rows") == 80
    assert all(found.closed for found in verify_archive(rig.run_dir))


def test_a_device_that_fails_to_sync_is_said_and_the_next_rows_go_to_a_new_shard(
    rig, monkeypatch, caplog
):
    worker = rig.start(fsync="batch")
    rig.feed(worker, rig.packet(torch.ones(8, 4), 0))
    real = os.fdatasync

    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    rig.feed(worker, rig.packet(torch.ones(8, 4), 1))
    assert "the device failed" in caplog.text
    monkeypatch.setattr(os, "fdatasync", real)
    rig.feed(worker, rig.packet(torch.ones(8, 4), 2))
    worker.close()
    assert [found.rows for found in verify_archive(rig.run_dir)] == [16, 8]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_real_full_filesystem_pauses_and_recovers(rig, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"mount is not permitted here: {made.stderr.decode().strip()}")
    try:
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(600 << 10))
        rig.run_dir = mount
        worker = rig.start(enospc_retry_s=0.01)

        def make_space():
            if rig.count("archive_write_errors"):
                ballast.unlink(missing_ok=True)

        rig.on_beat = make_space
        for seq in range(12):
            rig.feed(worker, rig.packet(torch.randn(100, 128), seq))
        worker.close()
        assert rig.count("archive_write_errors") >= 1
        assert not ballast.exists()
        assert verify_archive(mount)[0].ok
        assert rig.table(rig.shards()[0]).num_rows == 1200
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "--lazy", str(mount)], check=True, capture_output=True)
