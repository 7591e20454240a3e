"""A run that is brought back from its copy: what comes, what stays, who is refused, what a kill leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import runpy
import signal
import time
from pathlib import Path

import pytest

from asys_bench.contracts.run_files import attempts_in
from asys_bench.monitors.upload import bringing
from asys_bench.monitors.upload.bringing import BringError, Cause, bring_back
from asys_bench.monitors.upload.uploader import RunIsElsewhereError, Uploader
from asys_bench.sinks.archive.deletions import read_deletions
from asys_bench.sinks.archive.sidecar import Sidecar
from asys_bench.store.claims import LEASE_S, claims_in, hold_of, write_claim
from asys_bench.store.mirror import manifest_of
from asys_bench.store.objects import ObjectStore
from asys_bench.store.uri import parse_uri

_RUNS = runpy.run_path(str(Path(__file__).parent / "conftest.py"))
files_of, write_document = _RUNS["files_of"], _RUNS["write_document"]
CONFIG = """
schema: asys.config/1
run: {dir: %s}
host: {kind: ppo, checkpoint_every_steps: 8}
sinks: {trainer: {kind: sae_trainer}, archive: {kind: archiver}}
"""


@pytest.fixture
def here(run, tmp_path):
    """The run of the other tests, with more checkpoints, a host that is saved, and a moved copy of it."""
    (run / "config.yaml").write_text(CONFIG % (tmp_path / "elsewhere"))
    for folder in ("sae/policy.mlp", "host-state"):
        for step in (4, 8, 12, 16):
            path = run / folder / f"step_{step:09d}"
            path.mkdir(parents=True, exist_ok=True)
            for name in ("cfg.json", "manifest.json", "sae_weights.safetensors"):
                (path / name).write_text(f"{folder} {name} of step {step}")
    for step in (12, 20):
        path = run / "host" / f"step_{step:09d}"
        path.mkdir(parents=True)
        (path / "weights").write_text(f"{step}")
    (run / "host" / "latest").symlink_to("step_000000020")
    latest = run / "sae" / "policy.mlp" / "latest"
    latest.unlink()
    latest.symlink_to("step_000000012")
    for number, shard in enumerate(sorted((run / "archive" / "policy.mlp").glob("*.arrows"))):
        size = shard.stat().st_size
        sidecar = Sidecar(
            run_id="run-1", hook="policy.mlp", rows=10 + number, packets=2, batches=1, bytes=size
        )
        sidecar.write(shard, sync=False)
    return run


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.rest)])
def place(request, tmp_path):
    """Where the copy is: in a folder, or in moto's S3."""
    if request.param == "file":
        return f"file://{tmp_path}/store/run-1"
    return f"s3://{request.getfixturevalue('bucket').name}/runs/run-1"


def sent(run, uri):
    store = ObjectStore(parse_uri(uri))
    uploader = Uploader(run, store)
    assert uploader.send(final=True)
    return uploader


def stored_names(uri):
    manifest = json.loads(ObjectStore(parse_uri(uri)).get("manifest.json", 1 << 20))
    return set(manifest["files"]), manifest


def test_everything_comes_but_shards_and_old_checkpoints_and_the_copy_keeps_all(
    here, place, tmp_path
):
    sent(here, place)
    before, _ = stored_names(place)
    assert before == set(files_of(here))
    found = bring_back(place)
    path = Path(found.path)
    assert path == tmp_path / "elsewhere" / "run-1", "the run's own run.dir"
    gone = {
        *(
            f"archive/policy.mlp/archive-0-0-{n}.{end}"
            for n in (0, 1)
            for end in ("arrows", "json")
        ),
        *(name for name in before if name.startswith("host/")),
        *(n for n in before if n.startswith("sae/") and ("_000000004/" in n or "_000000008/" in n)),
        *(n for n in before if n.startswith("host-state/") and "_000000016/" not in n),
    }
    record = {"archive/storage.deleted.jsonl"}
    ours, theirs = files_of(path), files_of(here)
    assert set(ours) == before - gone | record
    assert all(ours[name] == theirs[name] for name in before - gone)
    assert os.readlink(path / "sae" / "policy.mlp" / "latest") == "step_000000012"
    assert not (path / "host").exists()
    told = read_deletions(path)
    assert {(one.shard, one.rows, one.packets, one.reason) for one in told.values()} == {
        ("policy.mlp/archive-0-0-0.arrows", 10, 2, "stored"),
        ("policy.mlp/archive-0-0-1.arrows", 11, 2, "stored"),
    }
    assert (found.shards, found.new) == (2, True)
    # It goes on: new shards and checkpoints beside what stayed.
    shard = path / "archive" / "policy.mlp" / "archive-1.0-0.arrows"
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_bytes(b"new" * 1000)
    shard.with_suffix(".json").write_text("{}")
    (path / "plan.json").write_text("{}")
    sent(path, place)
    after, manifest = stored_names(place)
    new = {f"archive/policy.mlp/archive-1.0-0.{end}" for end in ("arrows", "json")} | {"plan.json"}
    again = {n for n in before if n.startswith("host/step_000000020/")}  # it makes that step anew
    again |= {n for n in before if n.startswith("host-state/") and "_000000016/" not in n}
    assert after == before - again | new | record
    assert manifest["links"]["sae/policy.mlp/latest"] == "step_000000012"


def test_the_folder_that_was_left_behind_sends_nothing_more_and_is_not_gone_on_with(
    here, place, tmp_path
):
    left_behind = sent(here, place)
    path = Path(bring_back(place, tmp_path / "b").path)
    names, manifest = stored_names(place)
    (here / "plan.json").write_text("{}")
    for one in (left_behind, Uploader(here, ObjectStore(parse_uri(place)))):
        with pytest.raises(RunIsElsewhereError, match=r"goes on elsewhere \(pid"):
            one.send(final=True)
    assert stored_names(place) == (names, manifest)
    with pytest.raises(BringError, match="is behind") as error:
        bring_back(place, here.parent)
    assert error.value.cause is Cause.REFUSED
    assert bring_back(place, tmp_path / "b").new is False, "it is here, and has the copy"
    # A second copy of that folder, without what is hidden in it: the copy knows more than it does.
    document = json.loads((path / "run.json").read_text())
    document["attempts"].append({"attempt": 1})
    (path / "run.json").write_text(json.dumps(document))
    sent(path, place)
    (here / ".copy.json").unlink()
    with pytest.raises(RunIsElsewhereError, match="more attempts"):
        Uploader(here, ObjectStore(parse_uri(place))).send()


def test_a_run_that_is_at_work_is_not_taken_away(here, place, tmp_path):
    uploader = Uploader(here, ObjectStore(parse_uri(place)))
    uploader.send()  # it has not ended
    ours = hold_of(here, place)
    assert ours is not None

    def beat(seconds):
        time.sleep(1.1 if place.startswith("s3") else 0.01)
        write_claim(uploader.store, ours.claim)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bringing, "pause", beat)
        with pytest.raises(BringError, match=r"the run is at work elsewhere \(pid") as error:
            bring_back(place, tmp_path / "b")
    assert error.value.cause is Cause.IN_USE
    assert not (tmp_path / "b" / "run-1").exists()
    assert list(claims_in(uploader.store)) == [ours.claim]
    assert uploader.send(final=True)


def test_what_a_straggler_wrote_over_the_newer_manifest_is_kept(here, place, tmp_path):
    """Its last look at the manifest was before the copy was taken over."""
    straggler = sent(here, place)
    path = Path(bring_back(place, tmp_path / "b").path)
    newer = Uploader(path, ObjectStore(parse_uri(place)))
    newer.send()
    shard = here / "archive" / "policy.mlp" / "archive-0-0-2.arrows"
    shard.write_bytes(b"last" * 100)
    shard.with_suffix(".json").write_text("{}")
    straggler._read_manifest = lambda: None  # it has looked already
    straggler.send()
    (path / "plan.json").write_text("{}")
    assert newer.send(final=True)
    names, manifest = stored_names(place)
    assert {"archive/policy.mlp/archive-0-0-2.arrows", "plan.json"} < names
    assert manifest["term"] == 2


@pytest.mark.parametrize(
    ("lost", "cause", "words"),
    [
        ("host-state/", Cause.LACKING, "has no checkpoint of the host .host.checkpoint_every_steps: 8."),
        ("sae/", Cause.LACKING, "has no checkpoint of an SAE.*run.resume=auto"),
        ("run.json", Cause.REFUSED, "the copy has no run.json"),
        ("config.yaml", Cause.REFUSED, "the copy has no config.yaml"),
    ],
)  # fmt: skip
def test_what_the_copy_lacks_is_said_with_what_to_do(here, tmp_path, lost, cause, words):
    uri = f"file://{tmp_path}/store/run-1"
    sent(here, uri)
    path = tmp_path / "store" / "run-1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {n: f for n, f in manifest["files"].items() if not n.startswith(lost)}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BringError, match=words) as error:
        bring_back(uri, tmp_path / "b", strict=True)
    assert error.value.cause is cause
    assert not (tmp_path / "b").exists()
    if cause is Cause.LACKING:
        assert "begins anew" in bring_back(uri, tmp_path / "b").notes[0]
        assert not bring_back(uri, tmp_path / "b", strict=True).new, "what is here goes on as it is"


def test_places_without_the_run_are_told_apart(here, place, tmp_path, s3):
    for uri, cause in (
        (place.replace("run-1", "run-2"), Cause.NO_COPY),
        ("s3://no-such-bucket-here/run-1", Cause.REFUSED),
    ):
        with pytest.raises(BringError) as error:
            bring_back(uri, tmp_path / "b")
        assert error.value.cause is cause, str(error.value)
    sent(here, place)
    with pytest.raises(BringError, match="holds the run 'run-1', and 'job' is wanted"):
        bring_back(place, tmp_path / "b", id="job")
    other = tmp_path / "b" / "run-1"
    other.mkdir(parents=True)
    with pytest.raises(BringError, match="is in the way of the run"):
        bring_back(place, tmp_path / "b")
    write_document(other, began=5)
    with pytest.raises(BringError, match="is another run than"):
        bring_back(place, tmp_path / "b")


def test_an_object_that_changed_is_found_out_and_leaves_nothing_here(here, tmp_path):
    uri = f"file://{tmp_path}/store/run-1"
    sent(here, uri)
    rotten = tmp_path / "store" / "run-1" / "sae" / "policy.mlp" / "step_000000016" / "cfg.json"
    rotten.write_text(rotten.read_text().upper())
    with pytest.raises(BringError, match="gives back other bytes"):
        bring_back(uri, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    store = ObjectStore(parse_uri(uri))
    assert [claim.term for claim in claims_in(store)] == [1], "others may have it at once"


def test_killed_at_every_step_it_leaves_no_folder_and_the_next_one_brings_all(here, tmp_path):
    uri = f"file://{tmp_path}/store/run-1"
    sent(here, uri)
    names, _ = stored_names(uri)
    folder, steps = tmp_path / "store" / "run-1", []
    for at in range(0, 200, 3):
        parent, read_end, write_end = tmp_path / f"b{at}", *os.pipe()
        child = os.fork()
        if child == 0:
            steps_left = iter(range(at))

            def step(steps_left=steps_left):
                if next(steps_left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            for name in ("put", "pieces", "times", "get", "delete"):
                method = getattr(ObjectStore, name)

                def counted(self, *arguments, method=method, step=step):
                    step()
                    return method(self, *arguments)

                setattr(ObjectStore, name, counted)
            os.close(read_end)
            bring_back(uri, parent)
            os.write(write_end, b"whole")
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            whole = pipe.read() == b"whole"
        os.waitpid(child, 0)
        if whole:
            break
        steps.append(at)
        assert not (parent / "run-1").exists()
        assert stored_names(uri)[0] == names
        for claim in (*(folder / "claims").iterdir(), *parent.glob(".*")):
            os.utime(claim, (0, 0))  # nobody waits for the dead in a test
        assert bring_back(uri, parent).new
        assert [p.name for p in parent.iterdir()] == ["run-1"]
        assert len(attempts_in(parent / "run-1")) == 1
        for claim in (folder / "claims").iterdir():
            os.utime(claim, (0, 0))
    assert len(steps) > 5, steps
    assert LEASE_S > 0


@pytest.mark.parametrize("state", ["young", "held", "no locks", "left"])
def test_a_folder_that_another_process_may_be_filling_stays(here, tmp_path, monkeypatch, state):
    uri, parent = f"file://{tmp_path}/store/run-1", tmp_path / "b"
    sent(here, uri)
    other = parent / ".asys-bringing-other"
    other.mkdir(parents=True)
    (other / "run.json").write_text("half")
    with (other / ".lock").open("w") as lock:
        if state == "held":
            fcntl.flock(lock, fcntl.LOCK_EX)
        if state == "no locks":
            refused = OSError(errno.ENOLCK, "No locks available")
            monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(refused))
        if state != "young":  # that one's process has not come to its lock yet
            os.utime(other, (0, 0))
        assert bring_back(uri, parent).new
        assert (other / "run.json").exists() == (state != "left")


def test_the_claim_is_written_while_sidecars_come(here, tmp_path, monkeypatch):
    uri = f"file://{tmp_path}/store/run-1"
    sent(here, uri)
    said = []
    get, write = ObjectStore.get, bringing.write_claim

    def watched_get(self, key, most_bytes):
        if key.startswith("archive/"):
            said.append("sidecar")
        return get(self, key, most_bytes)

    def watched_write(store, claim, *lease_s):
        if "sidecar" in said and not lease_s:
            said.append("claim")
        write(store, claim, *lease_s)

    monkeypatch.setattr(ObjectStore, "get", watched_get)
    monkeypatch.setattr(bringing, "write_claim", watched_write)
    monkeypatch.setattr(bringing, "BEAT_S", -1.0)  # the next one is always due
    assert bring_back(uri, tmp_path / "b").shards == 2
    assert (said.count("sidecar"), said.count("claim")) == (2, 2), "one a shard"


@pytest.mark.parametrize("later", [0, 1])
def test_whoever_took_the_copy_over_meanwhile_keeps_it(here, tmp_path, monkeypatch, later):
    """This process hung for longer than its lease, and wakes up before its manifest."""
    uri = f"file://{tmp_path}/store/run-1"
    sent(here, uri)
    store = ObjectStore(parse_uri(uri))
    write_hold = bringing.write_hold
    theirs = []

    def hung(folder, place, hold):
        write_hold(folder, place, hold)
        now = manifest_of(store)
        files = {name: one for name, one in now.files.items() if name != "metrics.csv"}
        newer = now.following("another", files, hold.claim.term + later, False)
        theirs.append(newer.to_bytes())
        store.put("manifest.json", theirs)

    monkeypatch.setattr(bringing, "write_hold", hung)
    with pytest.raises(BringError, match="goes on elsewhere") as error:
        bring_back(uri, tmp_path / "b")
    assert error.value.cause is Cause.IN_USE
    assert store.get("manifest.json", 1 << 20) == theirs[0]
    assert list((tmp_path / "b").iterdir()) == []
    assert [claim.term for claim in claims_in(store)] == [1], "its own claim is withdrawn"
