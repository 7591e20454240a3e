"""Torn, damaged and hostile files: read up to the tear, repaired, or a typed error."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asys_bench.sinks.archive import ArchiveError, read_shard, repair_shard, verify_archive
from asys_bench.sinks.archive.frames import END_OF_STREAM
from asys_bench.sinks.archive.read import open_shard
from asys_bench.sinks.archive.sidecar import Sidecar

ROWS = (3, 1, 5, 2)


def write_shard(rig, **options) -> Path:
    worker = rig.start(**options)
    for seq, rows in enumerate(ROWS):
        rig.feed(worker, rig.packet(torch.randn(rows, 4), seq))
    worker.close()
    return rig.shards()[0]


def read_all(path: Path) -> tuple[int, int]:
    batches, found = read_shard(path)
    rows = [batch.num_rows for batch in batches]
    assert (sum(rows), len(rows)) == (found.rows, found.batches)
    return found.rows, found.batches


@pytest.fixture
def shard(rig) -> Path:
    return write_shard(rig)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_prefix_of_a_shard_opens_up_to_its_last_whole_batch(rig, tmp_path, data):
    path = tmp_path / "cut" / "archiver-0-0-0.arrows"
    whole_path = tmp_path / "whole.arrows"
    if not whole_path.exists():
        whole_path.write_bytes(write_shard(rig).read_bytes())
        path.parent.mkdir()
    whole = whole_path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)), label="length")])
    size = path.stat().st_size
    try:
        rows, batches = read_all(path)
    except ArchiveError:
        lost = repair_shard(path)
        assert not path.exists()
        assert lost.torn_copy is not None
        assert lost.torn_copy.stat().st_size == size
        lost.torn_copy.unlink()
        return
    assert rows == sum(ROWS[:batches])
    done = repair_shard(path, thorough=data.draw(st.booleans(), label="thorough"))
    assert (done.rows, done.batches) == (rows, batches)
    assert rig.table(path).num_rows == rows
    data_end = path.stat().st_size - len(END_OF_STREAM)
    if done.torn_copy is not None:
        assert done.torn_copy.read_bytes() == whole[data_end:size]
        done.torn_copy.unlink()
    sidecar = Sidecar.read(path)
    assert sidecar is not None
    assert (sidecar.rows, sidecar.packets, sidecar.torn_bytes) == (rows, batches, done.torn_bytes)
    again = repair_shard(path)
    assert (again.rows, again.torn_bytes, again.torn_copy) == (rows, 0, None)


def test_a_tail_of_zeros_is_torn(shard):
    whole = shard.read_bytes()
    shard.write_bytes(whole[: -len(END_OF_STREAM)] + bytes(5000))
    _, found = read_shard(shard)
    assert (found.rows, found.torn_bytes, found.damage) == (sum(ROWS), 5000, None)
    assert repair_shard(shard).torn_bytes == 5000


def test_a_torn_batch_is_reported_with_the_rows_it_announced(shard):
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-40])
    _, found = read_shard(shard)
    assert found.torn_rows == ROWS[-1]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_flipped_bytes_are_read_or_raise_archive_error_and_never_anything_else(rig, compression):
    path = write_shard(rig, compression=compression)
    whole = path.read_bytes()
    draw = random.Random(3)
    refused = opened = 0
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(broken))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        path.write_bytes(broken)
        try:
            read_all(path)
        except ArchiveError as error:
            refused += error.path == path
        else:
            opened += 1
    assert refused + opened == 150
    assert refused > 15


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 not an archive",
        END_OF_STREAM,
        struct.pack("<Ii", 0xFFFFFFFF, -5) + bytes(64),
        struct.pack("<Ii", 0xFFFFFFFF, 1 << 30),
        struct.pack("<Ii", 0xFFFFFFFF, 64) + b"\xff" * 64,
        struct.pack("<Ii", 0xFFFFFFFF, 64) + bytes(64),
    ],
)
def test_foreign_files_raise_archive_error(tmp_path, content):
    path = tmp_path / "x.arrows"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"x\.arrows"):
        read_shard(path)


def test_arrow_streams_of_another_format_are_refused_and_never_changed(rig, tmp_path):
    import pyarrow as pa

    path = tmp_path / "foreign.arrows"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.schema([])):
        pass
    before = path.read_bytes()
    for use in (read_shard, repair_shard):
        with pytest.raises(ArchiveError, match="format"):
            use(path)
    assert path.read_bytes() == before
    with pytest.raises(ArchiveError, match="cannot be opened"):
        read_shard(tmp_path / "missing.arrows")


def test_damage_in_the_middle_names_its_offset_and_repair_keeps_the_rest(rig, shard):
    whole = bytearray(shard.read_bytes())
    _, found = read_shard(shard)
    with open_shard(shard) as (_, frames):
        place = frames.batches[2].start
    whole[place] = 0x12
    shard.write_bytes(whole)
    with pytest.raises(ArchiveError, match=f"at byte {place}"):
        read_shard(shard)
    (checked,) = verify_archive(rig.run_dir)
    assert not checked.ok
    (done,) = verify_archive(rig.run_dir, repair=True)
    assert done.damage is not None
    assert 0 < done.rows < found.rows
    assert rig.table(shard).num_rows == done.rows
    assert done.torn_copy is not None
    assert done.torn_copy.read_bytes() == whole[place:]
    assert verify_archive(rig.run_dir)[0].ok


def test_verify_finds_a_flipped_value_and_missing_rows(rig, shard):
    whole = shard.read_bytes()
    batches, _ = read_shard(shard)
    value = next(batches).column("values").flatten()[0].as_py()
    place = whole.index(struct.pack("<f", value))
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    (found,) = verify_archive(rig.run_dir)
    assert "crc32c" in str(found.damage)
    assert "crc32c" in str(verify_archive(rig.run_dir, repair=True)[0].damage)
    shard.write_bytes(whole[: len(whole) - len(END_OF_STREAM)])
    assert "sidecar" in str(verify_archive(rig.run_dir)[0].damage)


def test_damaged_sidecars_raise_archive_error(rig, shard):
    sidecar = shard.with_suffix(".json")
    for content in (b"", b"{", b"[1]", b'{"rows": -1}', b"\xff" * 100, b"1" * (9 << 20)):
        sidecar.write_bytes(content)
        with pytest.raises(ArchiveError, match=r"\.json"):
            Sidecar.read(shard)
        assert not verify_archive(rig.run_dir)[0].ok
    assert verify_archive(rig.run_dir, repair=True)[0].damage is not None
    assert verify_archive(rig.run_dir)[0].ok


def test_a_live_shard_is_read_but_never_repaired(rig):
    worker = rig.start()
    rig.feed(worker, rig.packet(torch.ones(2, 4), 0))
    (path,) = rig.shards()
    with pytest.raises(ArchiveError, match="live process"):
        repair_shard(path)
    (found,) = verify_archive(rig.run_dir, repair=True)
    assert (found.ok, found.closed, found.rows) == (True, False, 2)
    rig.feed(worker, rig.packet(torch.ones(2, 4), 1))
    worker.close()
    assert verify_archive(rig.run_dir)[0].rows == 4


def test_a_run_without_an_archive_says_so(tmp_path):
    with pytest.raises(ArchiveError, match="did the run have an archiver"):
        verify_archive(tmp_path)
