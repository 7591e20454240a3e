"""A run that goes on: its bus counts from 0 again, and its archive keeps every packet apart."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import torch

from asys_bench.offline.archive_packets import archive_packets
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.verify.archive import ArchiveCheck
from asys_bench.sinks.archive import open_archive
from asys_bench.sinks.archive.layout import ShardName

HOOK = "policy.mlp"


def write_attempts(run_dir: Path, *first_steps: int) -> None:
    attempts = [
        {"attempt": number, "first_step": step, "first_packet": 100 * number}
        for number, step in enumerate(first_steps)
    ]
    document = {
        "schema": "asys.run/1", "run_id": "run-1", "hooks": [HOOK], "host_pid": 1,
        "attempts": attempts,
    }  # fmt: skip
    (run_dir / "run.json").write_text(json.dumps(document))


def live(rig, attempt: int, seqs: range, incarnation: int = 0) -> None:
    worker = rig.start(incarnation, attempt=attempt)
    for seq in seqs:
        rig.feed(worker, rig.packet(torch.full((2, 3), float(10 * attempt + seq)), seq))
    worker.close()


def test_packets_of_two_attempts_with_equal_numbers_are_both_kept_and_redelivered_ones_once(rig):
    live(rig, 0, range(3))
    live(rig, 0, range(2, 4), incarnation=1)
    live(rig, 1, range(3))
    live(rig, 1, range(2, 4), incarnation=1)
    assert [str(ShardName.parse(path.name)) for path in rig.shards()] == [
        "archiver-0-0-0.arrows", "archiver-0-1-0.arrows", "archiver-0-1.0-0.arrows",
        "archiver-0-1.1-0.arrows",
    ]  # fmt: skip
    columns = ArchiveView(rig.run_dir).numpy(HOOK)
    kept = list(zip(columns["attempt"].tolist(), columns["seq"].tolist(), strict=True))
    assert kept == [(attempt, seq) for attempt in (0, 1) for seq in range(4) for _ in range(2)]
    assert rig.count("archive_duplicates_skipped") == 2
    checked = list(ArchiveCheck(rig.run_dir, "run-1", repair=False, keep_torn=True).findings())
    assert [(one.state, one.rows, one.rows_twice) for one in checked if one.kind == "shard"] == [
        ("ok", 6, 0), ("ok", 2, 0), ("ok", 6, 0), ("ok", 2, 0),
    ]  # fmt: skip


def test_a_shard_that_a_killed_attempt_left_open_is_closed_by_the_next(rig):
    killed = rig.start()
    rig.feed(killed, rig.packet(torch.ones(2, 3), 0))
    (path,) = rig.shards()
    (shard,) = killed._shards.values()
    shard.abandon()
    assert not path.with_suffix(".json").exists()
    live(rig, 1, range(1))
    assert path.with_suffix(".json").exists()
    assert len(ArchiveView(rig.run_dir).numpy(HOOK)["row"]) == 4


def test_steps_that_were_made_again_are_read_of_all_attempts_or_of_the_last(rig):
    live(rig, 0, range(5))  # steps 0, 10, .. 40
    live(rig, 1, range(2, 4))  # made 20 and 30 again, then was killed
    live(rig, 2, range(3, 6))  # fell back to 30
    write_attempts(rig.run_dir, 0, 20, 30)
    columns = ArchiveView(rig.run_dir, "last").numpy(HOOK)
    kept = list(zip(columns["attempt"].tolist(), columns["host_step"].tolist(), strict=True))
    last = [(0, 0), (0, 10), (1, 20), (2, 30), (2, 40), (2, 50)]
    assert kept == [key for key in last for _ in range(2)]
    assert len(ArchiveView(rig.run_dir).numpy(HOOK)["row"]) == 2 * (5 + 2 + 3)
    archive = open_archive(rig.run_dir, "last")
    assert [packet.key[2] for packet in archive_packets(archive, HOOK)] == [
        0,
        1,
        102,
        203,
        204,
        205,
    ]
    assert [packet.attempt for packet in archive_packets(archive, HOOK)] == [0, 0, 1, 2, 2, 2]


def test_an_archive_of_before_has_one_attempt(rig):
    live(rig, 0, range(2))
    (path,) = rig.shards()
    with pa.ipc.open_stream(path.read_bytes()) as stream:
        table = stream.read_all().drop_columns(["attempt"])
    old = table.schema.with_metadata(table.schema.metadata | {b"format": b"asys.archive/2"})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, old) as out:
        out.write_table(table.cast(old))
    path.with_suffix(".json").unlink()
    columns = ArchiveView(rig.run_dir, "last").numpy(HOOK)
    assert columns["attempt"].tolist() == [0] * 4
    assert [packet.key for packet in archive_packets(open_archive(rig.run_dir), HOOK)] == [
        (7, 0, 0),
        (7, 0, 1),
    ]
