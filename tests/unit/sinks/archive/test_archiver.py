"""What the archiver writes: rows, columns, dtypes, shards, counts."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
import torch

from asys_bench.contracts.packet import checksum
from asys_bench.contracts.stats import StatsPage
from asys_bench.sinks.archive import open_archive, read_shard, verify_archive
from asys_bench.sinks.archiver import plugin


def test_one_row_per_token_with_its_metadata(rig):
    worker = rig.start()
    acts_BTD = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    rig.feed(worker, rig.packet(acts_BTD, 5, token_position=100), rig.packet(acts_BTD[0, 0], 6))
    worker.close()
    (path,) = rig.shards()
    assert path.name == "archiver-0-0-0.arrows"
    assert path.parent.name == "policy.mlp"
    table = rig.table(path)
    assert table.schema.field("values").type == pa.list_(pa.float32(), 4)
    assert table["values"].to_pylist() == [*acts_BTD.reshape(-1, 4).tolist(), [0, 1, 2, 3]]
    assert table["seq"].to_pylist() == [5] * 6 + [6]
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4, 5, 0]
    assert table["token_position"].to_pylist() == [100, 101, 102, 103, 104, 105, -1]
    first = table.slice(0, 1).drop_columns(["values"]).to_pylist()[0]
    assert first.pop("timestamp").value == 1_001_005
    assert first == {
        "source": 7, "shard": 0, "hook": "policy.mlp", "seq": 5, "row": 0, "kind": 0,
        "host_step": 50, "weights_version": 3, "sampling_rate": 0.5, "call_index": 5,
        "microbatch": 2, "token_position": 100, "encoding": "identity",
        "grid": "2x3", "text": 0, "attempt": 0,
    }  # fmt: skip
    described = table.schema.metadata
    assert (described[b"format"], described[b"run_id"]) == (b"asys.archive/3", b"run-1")
    assert (described[b"dtype"], described[b"row_shape"]) == (b"float32", b"4")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float32, "float"), (torch.float64, "double"), (torch.float16, "halffloat"),
        (torch.bfloat16, "float"), (torch.float8_e4m3fn, "float"), (torch.float8_e5m2, "float"),
        (torch.int8, "int8"), (torch.uint8, "uint8"), (torch.int16, "int16"),
        (torch.int32, "int32"), (torch.int64, "int64"), (torch.bool, "bool"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("together", [1, 3])
def test_every_dtype_comes_back_exactly(rig, dtype, stored, together):
    worker = rig.start()
    tensors = [torch.randn(5, 6).mul(3).to(dtype) for _ in range(together)]
    rig.feed(worker, *(rig.packet(tensor, seq) for seq, tensor in enumerate(tensors)))
    worker.close()
    table = rig.table(rig.shards()[0])
    assert str(table.schema.field("values").type.value_type) == stored
    assert table.schema.metadata[b"dtype"].decode() == str(dtype).removeprefix("torch.")
    wanted = torch.cat([t.to(torch.float64) for t in tensors])
    assert table["values"].to_pylist() == wanted.tolist()


def test_complex_values_are_stored_as_pairs(rig):
    worker = rig.start()
    rig.feed(worker, rig.packet(torch.tensor([[1 + 2j, 3 - 4j]]), 0))
    worker.close()
    assert rig.table(rig.shards()[0])["values"].to_pylist() == [[1, 2, 3, -4]]


def test_the_values_option_narrows_floats_and_leaves_integers(rig):
    worker = rig.start(values="float16")
    rig.feed(worker, rig.packet(torch.randn(2, 3), 0), rig.packet(torch.ones(2, 3).int(), 1, 2))
    worker.close()
    kinds = {str(rig.table(path).schema.field("values").type.value_type) for path in rig.shards()}
    assert kinds == {"halffloat", "int32"}


def test_scalars_are_rows_of_width_one_and_empty_tensors_have_none(rig):
    worker = rig.start()
    rig.feed(
        worker,
        rig.packet(torch.tensor(3.5), 0),
        rig.packet(torch.empty(0, 4), 1),
        rig.packet(torch.empty(4, 0), 2),
    )
    worker.close()
    (path,) = rig.shards()
    assert rig.table(path)["values"].to_pylist() == [[3.5]]
    assert rig.count("archive_packets") == 3


def test_another_width_dtype_or_hook_is_another_shard_and_alternating_opens_no_more(rig):
    worker = rig.start()
    for seq in range(0, 12, 4):
        rig.feed(
            worker,
            rig.packet(torch.ones(2, 4), seq),
            rig.packet(torch.ones(2, 8), seq + 1),
            rig.packet(torch.ones(2, 4).bfloat16(), seq + 2),
            rig.packet(torch.ones(2, 4), seq + 3, 2),
        )
    worker.close()
    assert len(rig.shards()) == 4 == rig.count("archive_shards")
    assert all(rig.table(path).num_rows == 6 for path in rig.shards())
    archive = open_archive(rig.run_dir)
    assert archive.hooks == ["policy.mlp", "value/net:0"]
    assert len(archive.shards("policy.mlp")) == 3
    with pytest.raises(KeyError, match="policy"):
        archive.shards("nope")


def test_at_most_max_open_shards_stay_open(rig):
    worker = rig.start(max_open_shards=2)
    for seq in range(6):
        rig.feed(worker, rig.packet(torch.ones(1, seq + 1), seq))
    assert sum(path.with_suffix(".json").exists() for path in rig.shards()) == 4
    worker.close()
    assert all(found.ok and found.closed for found in verify_archive(rig.run_dir))


def test_a_lease_is_one_batch_per_hook_and_large_ones_are_split(rig):
    worker = rig.start(rows_per_batch=10)
    rig.feed(worker, rig.packet(torch.ones(3, 2), 0), rig.packet(torch.ones(4, 2), 1))
    rig.feed(worker, rig.packet(torch.arange(50.0).reshape(25, 2), 2, token_position=7))
    worker.close()
    batches, _ = read_shard(rig.shards()[0])
    sizes = [(b.num_rows, b["row"][0].as_py(), b["token_position"][0].as_py()) for b in batches]
    assert sizes == [(7, 0, -1), (10, 0, 7), (10, 10, 17), (5, 20, 27)]
    assert json.loads(rig.shards()[0].with_suffix(".json").read_text())["packets"] == 3


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("fsync", ["never", "shard", "batch"])
def test_shards_rotate_by_size_and_their_sidecars_count_them(rig, compression, fsync):
    worker = rig.start(compression=compression, fsync=fsync, shard_rotate_mib=0.02)
    for seq in range(12):
        rig.feed(worker, rig.packet(torch.randn(20, 64), seq, shard=seq % 2))
    worker.close()
    paths = rig.shards()
    assert len(paths) >= 3
    assert [path.name for path in paths] == [f"archiver-0-0-{n}.arrows" for n in range(len(paths))]
    sidecars = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert all(sidecar["closed"] for sidecar in sidecars)
    assert sum(sidecar["rows"] for sidecar in sidecars) == 240 == rig.count("archive_rows")
    assert sum(sidecar["packets"] for sidecar in sidecars) == 12 == rig.count("archive_packets")
    assert [sidecar["bytes"] for sidecar in sidecars] == [path.stat().st_size for path in paths]
    assert sidecars[0]["ranges"][0] == {"source": 7, "shard": 0, "first_seq": 0, "last_seq": 0 + (
        2 * ((sidecars[0]["packets"] - 1) // 2)
    )}  # fmt: skip
    assert all(found.ok and found.closed for found in verify_archive(rig.run_dir))
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600] * len(paths)


def test_a_packet_that_does_not_decode_is_skipped_and_counted(rig, caplog):
    worker = rig.start()
    good = rig.packet(torch.ones(2, 4), 0)
    short = rig.packet(torch.ones(2, 4), 1, shape=(20, 4))
    flipped = rig.packet(torch.ones(2, 4), 2, crc=checksum(b"something else"))
    rig.feed(worker, good, short, flipped)
    worker.close()
    assert rig.table(rig.shards()[0]).num_rows == 2
    assert rig.count("archive_damaged_packets") == 2
    assert len(caplog.records) == 1


def test_an_image_can_be_put_together_again_from_its_rows(rig):
    from asys_bench.rundir.archive_view import ArchiveView

    worker = rig.start()
    images = [torch.randn(2, 3, 4, 5), torch.randn(3, 3, 4, 5)]
    rig.feed(worker, *(rig.packet(image, seq) for seq, image in enumerate(images)))
    worker.close()
    view = ArchiveView(rig.run_dir)
    (hook,) = view.hooks
    columns, places = view.numpy(hook), view.places(hook)
    assert places.shape == (60, 3)
    for seq, image in enumerate(images):
        mine = columns["seq"] == seq
        again = torch.empty_like(image)
        again[tuple(places[mine].T)] = torch.from_numpy(columns["values"][mine])
        assert torch.equal(again, image)


def test_an_archive_from_before_places_is_read_and_says_that_it_has_none(rig):
    from asys_bench.rundir.archive_view import ArchiveView
    from asys_bench.rundir.live_run import ReadingError

    worker = rig.start()
    rig.feed(worker, rig.packet(torch.ones(2, 4), 0))
    worker.close()
    (path,) = rig.shards()
    with pa.ipc.open_stream(path.read_bytes()) as stream:
        table = stream.read_all().drop_columns(["grid", "text", "attempt"])
    old = table.schema.with_metadata(table.schema.metadata | {b"format": b"asys.archive/1"})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, old) as out:
        out.write_table(table.cast(old))
    path.with_suffix(".json").unlink()
    view = ArchiveView(rig.run_dir)
    columns = view.numpy(view.hooks[0])
    assert (len(columns["values"]), set(columns["grid"]), set(columns["text"])) == (2, {""}, {255})
    assert set(columns["attempt"]) == {0}
    with pytest.raises(ReadingError, match="not recorded"):
        view.places(view.hooks[0])


def test_a_slot_without_room_counts_further_hooks_together(rig):
    rig.page.close()
    rig.page = StatsPage.create({"archiver-0": 1536, "archiver-1": 1536})
    worker = rig.start()
    rig.feed(worker, rig.packet(torch.ones(2, 4), 0), rig.packet(torch.ones(2, 4), 1, 2))
    worker.close()
    assert rig.count("archive_rows") == 4


def test_the_plugin_builds_what_its_options_say():
    worker = plugin.build(plugin.options(max_packets=8, min_packets=32, linger_s=1))
    assert (worker.max_packets, worker.min_packets, worker.linger_s) == (8, 8, 1)
    assert plugin.default_delivery == "at_least_once"
    assert all(field.description for field in plugin.options.model_fields.values())


@pytest.mark.parametrize("name", ["archive", "archive/policy.mlp"])
def test_nothing_is_written_through_a_link_out_of_the_run(rig, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    worker = rig.start()
    link = rig.run_dir / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(OSError, match="symbolic link"):
        rig.feed(worker, rig.packet(torch.zeros(2, 3), 0))
    assert list(elsewhere.iterdir()) == []
