"""A copy as a folder: readers of runs see what they see of the run itself; a hostile copy gives nothing."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest

from asys_bench.cli import run as asys_run
from asys_bench.contracts.run_files import read_run_file
from asys_bench.monitors.upload.bringing import bring_back
from asys_bench.monitors.upload.uploader import Uploader
from asys_bench.offline import archived_rows
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.open_run import open_run
from asys_bench.rundir.verify import State, verify_run
from asys_bench.sinks.archive import ArchiveError, open_archive
from asys_bench.store import mirror as mirrors
from asys_bench.store.mirror import CopyError, cache_folder, local_folder
from asys_bench.store.objects import ObjectStore
from asys_bench.store.uri import parse_uri
from asys_bench.system.files.below import is_file, scan, walk
from asys_bench.system.files.sources import is_elsewhere

UNIT = Path(__file__).parents[1]
_SMALL = runpy.run_path(str(UNIT / "rundir" / "conftest.py"))
_OFFLINE = runpy.run_path(str(UNIT / "offline" / "conftest.py"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for one in list(mirrors._open.values()):
        one.close()
    mirrors._open.clear()


def sent(run: Path, place: Path) -> str:
    """The URI of a run's copy in a folder."""
    uri = f"file://{place}"
    assert Uploader(run, ObjectStore(parse_uri(uri))).send(final=True)
    return uri


@pytest.fixture
def small(tmp_path):
    """A run with one of everything, that has ended."""
    path = tmp_path / "run-1"
    path.mkdir()
    made = _SMALL["SmallRun"](path)
    made.archiver.close()
    made.rig.page.close()
    _SMALL["write_documents"](path)
    _SMALL["train"](path / "sae" / "policy.mlp")
    return path


@pytest.fixture
def archived(tmp_path):
    run = _OFFLINE["write_run"](tmp_path / "run", rows=6000, hooks=(1, 3))
    _SMALL["write_documents"](run)
    (run / "config.yaml").write_text("epochs: 2\n")
    return run


def test_verify_finds_in_a_copy_what_it_finds_in_the_run(small, tmp_path):
    uri = sent(small, tmp_path / "copy")
    of_run, of_copy = verify_run(small), verify_run(local_folder(uri))
    plain = [
        [f.to_plain() for f in found.findings if f.path[0] != "."] for found in (of_run, of_copy)
    ]
    assert plain[0] == plain[1]
    assert of_copy.count(State.OK) == len(of_copy.findings)
    assert {f.kind for f in of_copy.findings} > {"shard", "checkpoint", "table", "document"}


def test_a_verified_copy_is_called_by_its_uri(small, tmp_path, capsys):
    uri = sent(small, tmp_path / "copy")
    assert asys_run.main(["verify", uri]) == 0
    assert f"{uri}: " in " ".join(capsys.readouterr().out.split())


def test_open_run_reads_a_copy_and_fetches_what_is_asked_for(small, tmp_path):
    uri = sent(small, tmp_path / "copy")
    local, remote = open_run(small), open_run(uri)
    assert (remote.run_id, remote.hooks) == (local.run_id, local.hooks)
    assert is_elsewhere(remote.path / "metrics.csv")
    assert remote.metrics()["value"].tolist() == local.metrics()["value"].tolist()
    assert not is_elsewhere(remote.path / "metrics.csv")
    (shard,) = (path for path, _ in walk(remote.path / "archive") if path.suffix == ".arrows")
    assert remote.archive.hooks == ["policy.mlp"]
    assert is_elsewhere(shard), "names of hooks are in the sidecars"
    for name, column in local.archive.numpy("policy.mlp").items():
        assert np.array_equal(column, remote.archive.numpy("policy.mlp")[name])
    assert not is_elsewhere(shard)
    weights = [run.sae("policy.mlp").state_dict() for run in (local, remote)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert (remote.path / "sae" / "policy.mlp" / "latest").readlink() == (
        small / "sae" / "policy.mlp" / "latest"
    ).readlink()


@pytest.mark.rest
def test_a_training_from_a_copy_ends_with_the_same_bits(archived, tmp_path, monkeypatch, capsys):
    uri = sent(archived, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    sets = ["--set", "sae.d_sae=24", "--set", "sae.k=3", "--set", "sae.buffer_rows=1024"]
    assert asys_run.main(["train", "--archive", f"{uri}/archive", *sets]) == 0
    assert (
        asys_run.main(["train", "--archive", str(archived), *sets, "--out", str(tmp_path / "l")])
        == 0
    )
    for hook in ("policy.mlp", "encoder"):
        two = [
            (out / hook / "latest" / "sae_weights.safetensors").read_bytes()
            for out in (tmp_path / "run-1-sae-offline", tmp_path / "l")
        ]
        assert two[0] == two[1]
    assert asys_run.main(["export", uri, "--format", "saelens", "--out", "exported"]) == 2
    assert asys_run.main(["verify", uri, "--repair"]) == 2
    assert "only read" in capsys.readouterr().err


def test_report_and_export_read_a_copy(small, tmp_path, monkeypatch):
    uri = sent(small, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert asys_run.main(["report", uri]) == 0
    assert asys_run.main(["report", str(small)]) == 0
    assert (tmp_path / "run-1-report.html").read_text() == (small / "report.html").read_text()
    assert asys_run.main(["export", uri, "--format", "saelens", "--out", "exported"]) == 0
    assert (tmp_path / "exported" / "policy.mlp" / "cfg.json").exists()


def test_shards_make_room_for_each_other_and_are_fetched_again(tmp_path, monkeypatch):
    rig = _OFFLINE["write_run"](tmp_path / "run", rows=700)
    for number in range(1, 4):
        worker = runpy.run_path(str(UNIT / "sinks/archive/conftest.py"))["Rig"](rig)
        archiver = worker.start(incarnation=number)
        worker.feed(archiver, worker.packet(_OFFLINE["data"](700), number + 1000))
        archiver.close()
        worker.page.close()
    _SMALL["write_documents"](rig)
    uri = sent(rig, tmp_path / "copy")
    monkeypatch.setattr(mirrors, "MOST_BYTES", 250_000)
    remote, local = open_archive(local_folder(uri)), open_archive(rig)
    for _ in range(2):
        rows = [sum(b.num_rows for b in a.batches("policy.mlp")) for a in (local, remote)]
        assert rows == [700 + 3 * 700] * 2
        here = [p for p in remote.shards("policy.mlp") if not is_elsewhere(p)]
        assert 0 < sum(p.stat().st_size for p in here) <= 250_000
        assert len(here) == 2
    assert archived_rows(remote, "policy.mlp") == archived_rows(local, "policy.mlp")


@pytest.mark.rest
def test_a_dataloaders_workers_fetch_for_themselves(archived, tmp_path):
    from torch.utils.data import DataLoader

    uri = sent(archived, tmp_path / "copy")
    rows = open_run(uri).archive.torch("policy.mlp", batch_rows=512)
    loader = DataLoader(rows, batch_size=None, num_workers=1, multiprocessing_context="fork")
    found = sum(len(batch) for batch in loader)
    assert found == 6000
    spawned = DataLoader(rows, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for path, _ in walk(open_run(uri).path / "archive"):
        path.unlink(missing_ok=True)
    assert sum(len(batch) for batch in spawned) == 6000


def test_two_processes_that_want_one_file_at_once_fetch_it_once(small, tmp_path, monkeypatch):
    one = mirrors.Mirror.open(sent(small, tmp_path / "copy"))
    two = mirrors.Mirror.of(one._home)
    path = one.folder / "metrics.csv"
    download, fetched, second = mirrors.download, [], threading.Event()
    other = threading.Thread(target=two.bring, args=[path])

    def slow(store, stored, target):
        fetched.append(target)
        if len(fetched) == 1:
            other.start()
        else:
            second.set()
        assert not second.wait(0.5), "both fetch"
        download(store, stored, target)

    monkeypatch.setattr(mirrors, "download", slow)
    one.bring(path)
    other.join(60)
    assert len(fetched) == 1
    assert path.read_bytes() == (small / "metrics.csv").read_bytes()
    one.close()


def test_what_ended_leaves_nothing_in_the_cache_and_what_was_killed_is_removed(small, tmp_path):
    uri = sent(small, tmp_path / "copy")
    local_folder(uri)
    (left,) = cache_folder().iterdir()
    killed = cache_folder() / "1-killed"
    (killed / "run-1").mkdir(parents=True)
    os.utime(killed, (1, 1))
    mirrors._open.popitem()[1].close()
    assert not left.exists()
    local_folder(uri)
    assert not killed.exists()


def test_a_copy_that_changes_while_it_is_read_gives_its_newer_files(small, tmp_path):
    place = tmp_path / "copy"
    uri = sent(small, place)
    remote = open_run(uri)
    for steps in range(3):
        (small / "summary.json").write_text(json.dumps({"steps": steps}))
        with (small / "metrics.csv").open("a") as file:
            file.write("2.0,2026-01-01,host,m,,,,,now,value,7,0\n")
        sent(small, place)
    assert remote.metrics()["value"].tolist() == open_run(small).metrics()["value"].tolist()


def manifest_of(place: Path) -> dict:
    return json.loads((place / "manifest.json").read_text())


def test_a_copy_that_lies_is_found_out(small, tmp_path):
    place = tmp_path / "copy"
    uri = sent(small, place)
    shard = next(place.glob("archive/*/*.arrows"))
    data = bytearray(shard.read_bytes())
    data[-40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArchiveError, match="gives back other bytes"):
        open_run(uri).archive.numpy("policy.mlp")
    found = {f.path: f for f in verify_run(local_folder(uri)).findings}
    assert found[f"archive/policy.mlp/{shard.name}"].state is State.DAMAGED
    shard.write_bytes(bytes(data) * 100)
    with pytest.raises(ArchiveError, match="other bytes"):
        open_run(uri).archive.numpy("policy.mlp")
    shard.unlink()
    with pytest.raises(ArchiveError, match="no such object"):
        open_run(uri).archive.numpy("policy.mlp")
    assert not [
        path for path, _ in walk(local_folder(uri)) if path.suffix == ".arrows" and path.exists()
    ]


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../out", ".host.lock"])
def test_a_hostile_copy_writes_nothing_outside_its_folder(name, small, tmp_path):
    place = tmp_path / "copy"
    uri = sent(small, place)
    document = manifest_of(place)
    (place / "evil").write_bytes(b"evil")
    document["files"][name] = {
        "object": "evil", "bytes": 4, "sha256": hashlib.sha256(b"evil").hexdigest(),
        "modified_ns": 1, "stored_ns": 1,
    }  # fmt: skip
    (place / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ReadingError, match="no file of a run"):
        open_run(uri)
    assert not (tmp_path / "out").exists()
    document["files"].pop(name)
    document["links"] = {"sae/policy.mlp/latest": "../../../.."}
    (place / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ReadingError):
        open_run(uri)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://k:secret@b/a", "file:///nowhere/at/all"])
def test_what_is_no_copy_is_said_with_its_place(uri, capsys):
    with pytest.raises(CopyError) as error:
        local_folder(uri)
    assert "secret" not in str(error.value)
    for command in (
        ["verify", uri],
        ["report", uri],
        ["train", "--archive", uri],
        ["evaluate", uri],
    ):
        assert asys_run.main(command) == 2
    said = "".join(capsys.readouterr())
    assert "secret" not in said
    assert said.count(uri.partition("k:")[0]) >= 4


def test_a_folder_is_itself(tmp_path):
    assert local_folder(tmp_path) == tmp_path
    assert scan(tmp_path) == []
    assert not is_file(tmp_path / "a")


def test_a_copy_in_s3_reads_like_the_run(small, bucket, tmp_path):
    uri = f"s3://{bucket.name}/runs/run-1"
    assert asys_run.main(["upload", str(small), "--uri", uri]) == 0
    of_run, of_copy = verify_run(small), verify_run(local_folder(uri))
    assert [f.to_plain() for f in of_copy.findings] == [
        f.to_plain() for f in of_run.findings if f.path[0] != "."
    ]
    assert read_run_file(local_folder(uri))["run_id"] == "run-1"
    assert open_run(uri).archive.numpy("policy.mlp")["values"].shape == (20, 6)


def test_a_run_that_was_brought_back_verifies_and_says_what_the_store_has(small, tmp_path):
    uri = sent(small, tmp_path / "copy")
    rows = verify_run(small).to_plain()["archive_rows"]
    path = Path(bring_back(uri, tmp_path / "b").path)
    verified = verify_run(path)
    assert not verified.damaged
    assert verified.to_plain()["archive_rows"] == 0
    told = {f.path: f.detail for f in verified.findings}["archive/storage.deleted.jsonl"]
    assert f"({rows} rows of" in told
    assert "as the run's store has them" in told
    again = local_folder(sent(path, tmp_path / "copy"))
    assert verify_run(again).to_plain()["archive_rows"] == rows > 0


def test_what_would_write_to_a_copy_is_refused(small, tmp_path, capsys):
    uri = sent(small, tmp_path / "copy")
    for command in (["upload", uri], ["pin", uri], ["top", uri]):
        assert asys_run.main(command) == 2, command
    said = "".join(capsys.readouterr()).replace("\n", " ")
    assert said.count("is only read") == 3


def test_what_only_the_store_has_is_said_and_the_copy_has_it(archived, tmp_path, capsys):
    whole = open_archive(archived)
    rows = archived_rows(whole, "encoder")
    store = ObjectStore(parse_uri(f"file://{tmp_path}/copy"))
    sender = Uploader(archived, store, delete_after_s=0.0)
    assert sender.send(final=True)
    sender.send(final=True)
    assert archived_rows(open_archive(local_folder(str(store.location))), "encoder") == rows
    assert open_archive(archived).deleted("encoder").rows == rows
    assert asys_run.main(["train", "--archive", str(archived)]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"{2 * rows:,} rows of 2 shards are in the run's store alone" in said
