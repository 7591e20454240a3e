"""`asys-run verify`: every kind of damage is found, named and, where it can be, mended."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asys_bench.cli.run import main
from asys_bench.rundir.open_run import open_run
from asys_bench.rundir.verify import State, verify_run
from asys_bench.sae import CheckpointStore, SAETrainer
from asys_bench.sae.checkpoint.checkpoint_store import MANIFEST_FILE
from asys_bench.sae.checkpoint.trainer_state import read_state
from asys_bench.sinks.archive.deletions import read_deletions
from asys_bench.sinks.archive.frames import END_OF_STREAM
from asys_bench.sinks.archive.read import open_shard

from ..cluster import documents

HERE = Path(__file__).parent
train = runpy.run_path(str(HERE / "conftest.py"))["train"]


def found(run, name: str, **options):
    """The one finding whose path contains `name`."""
    (one,) = [f for f in verify_run(run.path, **options).findings if name in f.path]
    return one


def tear(path: Path, lost: int) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    return whole


def test_a_whole_run_is_well_and_every_file_is_named(run):
    done = verify_run(run.path)
    assert not done.damaged
    assert {f.state for f in done.findings} == {State.OK}
    kinds = sorted(f.kind for f in done.findings)
    assert kinds == [
        "checkpoint", "checkpoint", "document", "document", "events", "log", "shard", "table",
    ]  # fmt: skip
    assert done.to_plain()["archive_rows"] == 20
    assert found(run, "metrics.csv").rows == 3


def test_what_readers_reports_and_trainings_from_the_archive_add_is_not_foreign(run):
    (run.path / ".readers").mkdir()
    (run.path / ".readers" / "reader-0").touch()
    for name in ("summary.json", "plan.json", "vocabulary.json", "watch/policy.mlp-0.json"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("{}")
    (run.path / "report.html").write_text("<!doctype html>")
    train(run.path / "sae-offline" / "policy.mlp")
    train(run.path / "k32" / "policy.mlp", saves=1)
    done = verify_run(run.path)
    assert {f.path: f.state for f in done.findings if f.state is not State.OK} == {}
    kinds = [f.kind for f in done.findings]
    assert kinds.count("checkpoint") == 2 + 2 + 1
    weights = next((run.path / "k32").rglob("sae_weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert found(run, "k32").state is State.DAMAGED


def test_a_torn_shard_says_what_is_readable_and_what_is_lost_and_is_mended(run):
    run.shard.with_suffix(".json").unlink()
    whole = tear(run.shard, len(END_OF_STREAM) + 100)
    one = found(run, "archiver-0-0-0.arrows")
    assert (one.state, one.rows, one.lost_rows) == (State.TORN, 15, 5)
    assert one.lost_bytes > 0
    repaired = verify_run(run.path, repair=True)
    assert repaired.damaged, "damage that was repaired is still damage found"
    torn = run.shard.with_name(run.shard.name + ".torn")
    kept = run.shard.read_bytes()[: -len(END_OF_STREAM)] + torn.read_bytes()
    assert whole.startswith(kept)
    assert len(torn.read_bytes()) == one.lost_bytes
    again = verify_run(run.path)
    assert not again.damaged
    assert again.to_plain()["archive_rows"] == 15
    assert run.rig.table(run.shard).num_rows == 15


def test_the_torn_bytes_are_discarded_when_that_is_asked_for(run):
    run.shard.with_suffix(".json").unlink()
    tear(run.shard, 100)
    verify_run(run.path, repair=True, keep_torn=False)
    assert not list(run.path.rglob("*.torn"))
    assert not verify_run(run.path).damaged


def test_a_flipped_bit_in_a_shard_is_found_by_its_checksum(run):
    data = bytearray(run.shard.read_bytes())
    place = data.index(torch.full((6,), 2.0).numpy().tobytes())
    data[place] ^= 1
    run.shard.write_bytes(data)
    one = found(run, "archiver-0-0-0.arrows")
    assert one.state is State.DAMAGED
    assert "crc32c" in one.detail


def test_a_shard_whose_middle_is_damaged_keeps_the_rows_before_it(run):
    data = bytearray(run.shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = os.urandom(400)
    run.shard.write_bytes(data)
    one = found(run, "archiver-0-0-0.arrows")
    assert one.state is State.DAMAGED
    verify_run(run.path, repair=True)
    assert run.rig.table(run.shard).num_rows % 5 == 0
    assert not verify_run(run.path).damaged


def test_a_sidecar_that_lists_other_keys_or_lost_its_shard_is_damage(run):
    sidecar = run.shard.with_suffix(".json")
    listed = json.loads(sidecar.read_text())
    listed["ranges"][0]["last_seq"] = 99
    sidecar.write_text(json.dumps(listed))
    assert "keys" in found(run, "archiver-0-0-0.arrows").detail
    run.shard.unlink()
    one = found(run, "archiver-0-0-0.json")
    assert (one.state, one.lost_rows) == (State.DAMAGED, 20)


def test_rows_that_two_workers_archived_are_counted_and_are_no_damage(run):
    other = run.rig.start(name="archiver-1")
    for seq in (2, 3, 4):
        run.feed(other, seq)
    other.close()
    done = verify_run(run.path)
    assert not done.damaged
    assert done.to_plain()["archive_rows_twice"] == 10


def test_what_is_being_written_is_no_damage_and_is_never_repaired(run):
    worker = run.rig.start(name="archiver-1")
    run.feed(worker, 7)
    (open_,) = [p for p in run.rig.shards() if "archiver-1" in p.name]
    with open_.open("ab") as file:  # a batch that is half way in
        with open_shard(run.shard) as (_, frames):
            start = frames.batches[1].start
        file.write(run.shard.read_bytes()[start : start + 200])
    before = open_.read_bytes()
    done = verify_run(run.path, repair=True)
    assert not done.damaged
    one = found(run, "archiver-1-0-0.arrows")
    assert (one.state, one.rows) == (State.BEING_WRITTEN, 5)
    assert open_.read_bytes() == before
    run.feed(worker, 8)
    worker.close()
    assert found(run, "archiver-1-0-0.arrows").state is State.OK


def test_a_shard_whose_writer_died_between_batches_is_whole_and_gets_closed(run):
    run.shard.with_suffix(".json").unlink()
    tear(run.shard, len(END_OF_STREAM))
    one = found(run, "archiver-0-0-0.arrows")
    assert (one.state, one.rows) == (State.OK, 20)
    assert "died before" in one.detail
    assert found(run, "archiver-0-0-0.arrows", repair=True).repair == "closed"
    assert found(run, "archiver-0-0-0.arrows").detail == ""


def test_files_of_others_are_named_foreign_and_left_alone(run):
    folder = run.shard.parent
    (folder / "notes.arrows").write_text("my own notes")
    (run.path / "analysis.ipynb").write_text("{}")
    other = folder / "archiver-0-0-9.arrows"
    other.write_bytes(run.shard.read_bytes().replace(b"run-1", b"run-2"))
    done = verify_run(run.path, repair=True)
    states = {f.path.rsplit("/", 1)[-1]: f.state for f in done.findings}
    for name in ("notes.arrows", "analysis.ipynb", "archiver-0-0-9.arrows"):
        assert states[name] is State.FOREIGN
    assert not done.damaged
    assert (folder / "notes.arrows").read_text() == "my own notes"


@pytest.mark.parametrize(
    "file", ["sae_weights.safetensors", "trainer_state.safetensors", "cfg.json", MANIFEST_FILE]
)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_training_goes_on(run, file):
    store = CheckpointStore(run.path / "sae" / "policy.mlp")
    newest, older = store.checkpoints()
    data = bytearray((newest / file).read_bytes())
    data[-20] ^= 0x10
    (newest / file).write_bytes(data)
    one = found(run, newest.name)
    assert one.state is State.DAMAGED
    assert file in one.detail or MANIFEST_FILE in one.detail
    repaired = verify_run(run.path, repair=True)
    assert repaired.damaged
    assert not verify_run(run.path).damaged
    assert store.latest() == older
    assert open_run(run.path).sae("policy.mlp").d_sae == 24
    assert SAETrainer(read_state(older).config).load(store.folder) == older


def test_unfinished_checkpoints_are_leftovers_and_a_dangling_latest_is_damage(run):
    folder = run.path / "sae" / "policy.mlp"
    (folder / ".tmp-abc").mkdir()
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("step_000009999")
    done = verify_run(run.path, repair=True)
    states = {f.path.rsplit("/", 1)[-1]: f for f in done.findings}
    assert states[".tmp-abc"].state is State.LEFTOVER
    assert states["latest"].state is State.DAMAGED
    assert not (folder / ".tmp-abc").exists()
    assert CheckpointStore(folder).latest() == CheckpointStore(folder).checkpoints()[0]
    assert not verify_run(run.path).damaged


@pytest.mark.parametrize("folder", ["host", "host-state"])
def test_weights_of_a_host_are_checked_and_unfinished_ones_are_leftovers(run, folder):
    store = CheckpointStore(run.path / folder, below=run.path)
    whole = store.write(1, lambda at: (at / "model.safetensors").write_bytes(b"weights"))
    partial = run.path / folder / ".tmp-abc"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"wei")
    assert found(run, f"{folder}/step_000000001").state is State.OK
    name = f"{folder}/.tmp-abc"
    assert found(run, name).state is State.LEFTOVER
    assert found(run, name, repair=True).repair == "removed"
    assert not partial.exists()
    (whole / "model.safetensors").write_bytes(b"weightz")
    assert found(run, f"{folder}/step_000000001").state is State.DAMAGED


@pytest.mark.parametrize(("name", "rows"), [("metrics.csv", 2), ("monitor.log", 1)])
def test_half_a_line_is_torn_and_is_cut_off(run, name, rows):
    path = run.path / name
    whole = tear(path, 7)
    one = found(run, name)
    assert (one.state, one.rows, one.lost_rows) == (State.TORN, rows, 1)
    verify_run(run.path, repair=True)
    assert whole.startswith(path.read_bytes() + (run.path / f"{name}.torn").read_bytes())
    assert path.read_bytes().endswith(b"\n")
    assert not verify_run(run.path).damaged


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"schema": "asys.run/1"}'),
        ("config.yaml", "- a"),
        ("config.yaml", "!!python/object/apply:os.system ['true']"),
        ("metrics.csv", "a,b\n1,2\n"),
        ("monitor.log", "no json\n"),
    ],
)
def test_documents_that_do_not_parse_are_damage(run, name, content):
    (run.path / name).write_text(content)
    assert found(run, name).state is State.DAMAGED


def test_event_files_are_checked_record_by_record(run):
    (path,) = (run.path / "tensorboard").iterdir()
    whole = tear(path, 3)
    assert found(run, "tfevents").state is State.TORN
    verify_run(run.path, repair=True, keep_torn=False)
    assert not verify_run(run.path).damaged
    path.write_bytes(whole[:30] + b"\0" + whole[31:])
    assert found(run, "tfevents").state is State.DAMAGED


def test_accounts_with_other_machines_are_checked_by_their_identities(run):
    folder = run.path / "cluster"
    folder.mkdir()
    quiet = documents.reported(100, 97, {"slow": 3}, 0)
    (folder / "receiver.json").write_text(
        json.dumps(documents.receiver(documents.sender(97, 0, quiet)))
    )
    (folder / "remote-0.json").write_text(json.dumps(documents.forwarder()))
    (folder / "ledger.json").write_text("{}")
    (folder / "ledger.bin").write_bytes(bytes(64))
    assert {f.state for f in verify_run(run.path).findings} == {State.OK}
    (folder / "remote-0.json").write_text(json.dumps(documents.forwarder(dropped={"slow": 4})))
    one = found(run, "remote-0.json")
    assert (one.state, one.detail) == (
        State.DAMAGED,
        "taken 100 is not acked 95 + dropped 4 + in flight 0: +1",
    )
    (folder / "receiver.json").write_text("{}")
    assert found(run, "receiver.json").state is State.DAMAGED
    (folder / "notes").write_text("")
    assert found(run, "notes").state is State.FOREIGN


def test_what_a_receiver_lost_with_all_of_its_workers_is_told(run):
    (run.path / "cluster").mkdir()
    quiet = documents.reported(100, 97, {"slow": 3}, 0)
    (run.path / "cluster/receiver.json").write_text(
        json.dumps(documents.receiver(documents.sender(97, 0, quiet)))
    )
    accounts = {"produced": 50, "dropped": {}}, None, {"produced": 30, "dropped": {"full": 1}}
    document = json.loads((run.path / "run.json").read_text())
    document["attempts"] = [{"attempt": n, "account": one} for n, one in enumerate(accounts)]
    (run.path / "run.json").write_text(json.dumps(document))
    one = found(run, "receiver.json")
    assert one.state is State.OK
    assert one.detail.startswith(
        "18 of 97 accepted packets are in no account of this run: attempt 1"
    )
    document["attempts"][1]["account"] = {"produced": 18, "dropped": {}}
    (run.path / "run.json").write_text(json.dumps(document))
    assert found(run, "receiver.json").detail == ""


def test_a_missing_run_file_is_damage_and_the_rest_is_still_checked(run):
    (run.path / "run.json").unlink()
    done = verify_run(run.path)
    assert done.damaged
    assert done.to_plain()["archive_rows"] == 20


def test_exit_codes_json_and_table(run, tmp_path, capsys):
    assert main(["verify", str(run.path)]) == 0
    assert "20 archived rows" in capsys.readouterr().out
    run.shard.with_suffix(".json").unlink()
    tear(run.shard, 100)
    assert main(["verify", str(run.path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "asys.verify/1"
    assert (document["damaged"], document["states"]["torn"]) == (True, 1)
    assert main(["verify", str(run.path)]) == 1
    said = capsys.readouterr().out
    assert "15 readable, 5 rows" in said
    assert "--repair" in said
    assert main(["verify", str(run.path), "--repair"]) == 1
    assert main(["verify", str(run.path)]) == 0
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert main(["verify", str(run.path), "--discard-torn"]) == 2


KILLED = """
import os, runpy, signal, sys
from pathlib import Path
import torch
run = runpy.run_path(sys.argv[1])["SmallRun"](Path(sys.argv[2]))
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.rest
def test_a_shard_is_being_written_for_as_long_as_its_process_lives(run, tmp_path):
    live = tmp_path / "live"
    live.mkdir()
    shutil.copy(run.path / "config.yaml", live)
    shutil.copy(run.path / "run.json", live)
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(HERE / "conftest.py"), str(live)],
        stdout=subprocess.PIPE,
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        assert [f.state for f in verify_run(live).findings if f.kind == "shard"] == [
            State.BEING_WRITTEN
        ]
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()
    (one,) = [f for f in verify_run(live).findings if f.kind == "shard"]
    assert (one.state, one.rows) == (State.OK, 20)


def test_a_shard_deleted_for_the_budget_is_no_missing_shard(run):
    worker = run.rig.start(name="archiver-1", max_gib=4 / 1024 / 1024, fsync="never")
    for seq in range(40):
        run.feed(worker, seq, hook=2)
    worker.close()
    deletions = read_deletions(run.path)
    assert deletions
    result = verify_run(run.path)
    assert not result.damaged
    (said,) = [f for f in result.findings if f.path.endswith(".deleted.jsonl")]
    assert said.state is State.OK
    rows = sum(one.rows for one in deletions.values())
    assert f"{len(deletions)} oldest shards ({rows} rows" in said.detail


def test_a_shard_on_record_that_is_still_there_is_a_leftover_and_a_repair_deletes_it(run):
    worker = run.rig.start(name="archiver-1", fsync="never")
    run.feed(worker, 0, hook=2)
    worker.close()
    (shard,) = run.path.glob("archive/*/archiver-1-*.arrows")
    name = shard.relative_to(run.path / "archive").as_posix()
    line = {"shard": name, "hook": "value/net:0", "rows": 5, "packets": 1, "bytes": 9}
    (run.path / "archive" / "archiver-1.deleted.jsonl").write_text(json.dumps(line) + "\n")
    found = {f.path: f for f in verify_run(run.path).findings}
    assert found[f"archive/{name}"].state is State.LEFTOVER
    assert not verify_run(run.path, repair=True).damaged
    assert not shard.exists()
    assert not shard.with_suffix(".json").exists()
