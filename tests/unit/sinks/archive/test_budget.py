"""`max_gib`: what is deleted, what is counted, and what a crash or a reader in between meets."""

from __future__ import annotations

import json
import os

import pytest
import torch

from asys_bench.contracts.run_files import ARCHIVE_DIR
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.sinks.archive import deletions, open_archive
from asys_bench.sinks.archive.deletions import read_deletions

MIB = 1 << 20
BUDGET_MIB = 2
OPTIONS = {"max_gib": BUDGET_MIB / 1024, "fsync": "never"}
ROWS = torch.arange(64 * 256, dtype=torch.float32).reshape(64, 256)
"""64 KiB of values in one packet."""


def held(rig) -> int:
    folder = rig.run_dir / ARCHIVE_DIR
    return sum(
        path.stat().st_size for path in folder.rglob("*") if path.suffix in (".arrows", ".json")
    )


def write(rig, worker, seqs, hook=1) -> None:
    for seq in seqs:
        rig.feed(worker, rig.packet(ROWS, seq, hook))


def kept(rig, hook="policy.mlp") -> list[int]:
    batches = open_archive(rig.run_dir).batches(hook)
    return [seq for batch in batches for seq in dict.fromkeys(batch.column("seq").to_pylist())]


def test_the_oldest_shards_go_and_the_newest_rows_stay(rig):
    worker = rig.start(**OPTIONS)
    write(rig, worker, range(100))
    assert BUDGET_MIB * MIB / 2 < held(rig) <= BUDGET_MIB * MIB * 5 / 4
    worker.close()
    assert held(rig) <= BUDGET_MIB * MIB
    seqs = kept(rig)
    assert seqs == list(range(seqs[0], 100)), "what is left is the newest, without a gap"
    assert 0 < seqs[0] < 85


def test_every_row_is_written_and_kept_or_deleted(rig):
    worker = rig.start(**OPTIONS)
    write(rig, worker, range(100))
    worker.close()
    assert rig.count("archive_rows") == 6400
    assert rig.count("archive_deleted_rows") == 6400 - 64 * len(kept(rig))
    assert rig.count("archive_deleted_packets") == 100 - len(kept(rig))
    assert rig.count("archive_deleted_shards") == rig.count("archive_shards") - len(rig.shards())
    gone = ArchiveView(rig.run_dir).deleted("policy.mlp")
    assert (gone.rows, gone.packets) == (
        rig.count("archive_deleted_rows"),
        rig.count("archive_deleted_packets"),
    )


def test_several_hooks_share_one_budget(rig):
    worker = rig.start(**OPTIONS)
    for seq in range(60):
        for hook in (1, 2, 3):
            write(rig, worker, [seq], hook)
        assert held(rig) <= BUDGET_MIB * MIB * 5 / 4 + 3 * 90_000
    worker.close()
    assert held(rig) <= BUDGET_MIB * MIB
    assert {len(kept(rig, hook)) > 0 for hook in open_archive(rig.run_dir).hooks} == {True}


def test_one_lease_larger_than_the_budget_stays_within_it(rig):
    worker = rig.start(**OPTIONS)
    rig.feed(worker, *(rig.packet(ROWS, seq) for seq in range(100)))
    assert held(rig) <= BUDGET_MIB * MIB * 3 / 2
    worker.close()
    assert kept(rig)[-1] == 99


def test_without_a_budget_nothing_is_deleted(rig):
    worker = rig.start(shard_rotate_mib=0.5, fsync="never")
    write(rig, worker, range(100))
    worker.close()
    assert kept(rig) == list(range(100))
    assert read_deletions(rig.run_dir) == {}


def test_workers_of_a_group_stay_within_the_budget_together_and_delete_nothing_twice(rig):
    workers = [rig.start(name=f"archiver-{n}", members=2, **OPTIONS) for n in (0, 1)]
    for seq in range(200):
        write(rig, workers[seq % 2], [seq])
    for worker in workers:
        worker.close()
    assert held(rig) <= BUDGET_MIB * MIB
    records = list((rig.run_dir / ARCHIVE_DIR).glob("*.deleted.jsonl"))
    lines = [json.loads(line) for path in records for line in path.read_text().splitlines()]
    assert len(lines) == len({line["shard"] for line in lines}) == len(read_deletions(rig.run_dir))
    deleted = sum(rig.count("archive_deleted_packets", f"archiver-{n}") for n in (0, 1))
    assert deleted + len(kept(rig)) == 200


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize("after", ["record", "shard"])
def test_a_worker_killed_while_it_deletes_loses_and_counts_nothing_twice(rig, monkeypatch, after):
    worker = rig.start(**OPTIONS)
    write(rig, worker, range(30))

    def die(archive, deletion):
        if after == "shard":
            (archive / deletion.shard).unlink()
        raise Killed

    monkeypatch.setattr(deletions, "finish", die)
    with pytest.raises(Killed):
        write(rig, worker, range(30, 100))
    monkeypatch.undo()
    recorded = read_deletions(rig.run_dir)
    assert recorded, "it was on record before it was deleted"
    on_disk = {path.relative_to(rig.run_dir / ARCHIVE_DIR).as_posix() for path in rig.shards()}
    assert bool(on_disk & recorded.keys()) is (after == "record")
    assert 0 not in kept(rig), "readers leave out what is on record"
    for shard in worker._shards.values():  # the killed one's files, as they are
        shard.abandon()

    successor = rig.start(incarnation=1, **OPTIONS)
    assert rig.count("archive_deleted_rows") == sum(one.rows for one in recorded.values())
    write(rig, successor, range(100, 140))
    successor.close()
    assert held(rig) <= BUDGET_MIB * MIB
    on_disk = {path.relative_to(rig.run_dir / ARCHIVE_DIR).as_posix() for path in rig.shards()}
    assert not on_disk & read_deletions(rig.run_dir).keys()
    assert kept(rig)[-1] == 139


def test_a_restarted_worker_keeps_the_budget_with_the_shards_of_before(rig):
    for incarnation in range(4):
        worker = rig.start(incarnation=incarnation, **OPTIONS)
        write(rig, worker, range(incarnation * 30, incarnation * 30 + 30))
        for shard in worker._shards.values():
            shard.abandon()  # killed: its successor repairs and closes it
    worker = rig.start(incarnation=4, **OPTIONS)
    worker.close()
    assert held(rig) <= BUDGET_MIB * MIB
    seqs = kept(rig)
    assert seqs == list(range(seqs[0], 120))


def test_a_restarted_worker_knows_the_oldest_shard_whatever_the_clock_of_its_files_says(rig):
    options = {"shard_rotate_mib": 0.5, "fsync": "never"}
    worker = rig.start(max_gib=1.0, **options)
    for hook in (1, 2, 1, 2):
        first = rig.count("archive_packets")
        write(rig, worker, range(first, first + 15), hook)
    worker.close()
    paths = rig.shards()
    first_seq = {path: min(rig.table(path)["seq"].to_pylist()) for path in paths}
    for path in paths:  # the wall clock went backwards
        os.utime(path, ns=(0, (1000 - first_seq[path]) * 1_000_000_000))
    worker = rig.start(1, max_gib=(held(rig) - 1) / (1 << 30), **options)
    worker.close()
    assert set(paths) - set(rig.shards()) == {min(paths, key=first_seq.__getitem__)}


def test_a_reader_reads_on_in_a_deleted_shard_and_skips_those_that_are_gone(rig):
    worker = rig.start(**OPTIONS)
    write(rig, worker, range(20))
    archive = open_archive(rig.run_dir)
    batches = archive.batches("policy.mlp")
    first = next(batches)
    write(rig, worker, range(20, 100))
    rest = list(batches)
    worker.close()
    begun = [first, *(b for b in rest if b.column("seq")[0].as_py() < 8)]
    assert [b.column("seq")[0].as_py() for b in begun][:3] == [0, 1, 2], "its file was open"
    assert archive.gone == len(archive.shards("policy.mlp")) - 1
    assert archive.gone > 0


def test_a_view_opened_before_a_deletion_still_makes_a_dataset(rig):
    pytest.importorskip("datasets")
    worker = rig.start(**OPTIONS)
    write(rig, worker, range(30))
    worker.close()
    view = ArchiveView(rig.run_dir)
    first = rig.shards()[0]
    first.unlink()
    assert 0 < len(view.datasets("policy.mlp")) < 30 * 64
    assert view.gone == 1
