"""Starts of a run whose folder is not here: what `run.resume` means then, and what never begins anew."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest
import torch

import asys_bench
from asys_bench.cli.run import main
from asys_bench.config import ConfigError, dump_yaml, load_config
from asys_bench.monitors.upload import bringing
from asys_bench.monitors.upload.uploader import Uploader
from asys_bench.run import from_store, storage
from asys_bench.run.attempts import ResumeError, open_run_dir
from asys_bench.run.from_store import NotBroughtError
from asys_bench.run.storage import storage_problems
from asys_bench.store.objects import ObjectStore
from asys_bench.store.probe import Found, probe
from asys_bench.store.uri import parse_uri

_SMALL = runpy.run_path(str(Path(__file__).parents[1] / "rundir" / "conftest.py"))
OVERLAY = """
extends: profile_consumer.yaml
run: {resume: auto, id: job, dir: %s}
storage: {uri: "file://%s/{run_id}"}
"""


def load(folder, *sets):
    path = folder / "mine.yaml"
    path.write_text(OVERLAY % (folder / "runs", folder / "store"))
    return load_config(path, sets, env={})


@pytest.fixture
def in_process(monkeypatch, capsys):
    """What asks the store runs in this process, which hosts nothing."""

    def run(command, **_):
        monkeypatch.setattr("sys.argv", command[3:])
        capsys.readouterr()
        bringing.main()
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out.encode(), b"")

    monkeypatch.setattr(from_store.subprocess, "run", run)
    monkeypatch.setattr(storage, "ask", lambda uri, within_s: probe(uri))


@pytest.fixture
def stored(tmp_path):
    """The copy of a run that was preempted; its folder is gone. Its SAE's checkpoint."""
    folder = tmp_path / "machine-a" / "job"
    folder.mkdir(parents=True)
    _SMALL["train"](folder / "sae" / "policy")
    (folder / "config.yaml").write_text(dump_yaml(load(tmp_path).config))
    document = {
        "schema": "asys.run/1", "run_id": "job", "id": "job", "hooks": [], "host_pid": 1, "result": {},
        "attempts": [{"attempt": 0, "started_unix_ns": 5, "end": "preempted", "last_step": 7}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    place = f"file://{tmp_path}/store/job"
    assert Uploader(folder, ObjectStore(parse_uri(place))).send(final=True)
    return next((folder / "sae" / "policy").glob("step_*"))


def test_auto_and_require_bring_the_run_back_and_never_does_not(tmp_path, stored, in_process):
    loaded = load(tmp_path)
    assert storage_problems(loaded) == []
    run_dir = open_run_dir(loaded)
    assert (run_dir.attempt, run_dir.run_id) == (1, "job")
    run_dir.release()
    ours = run_dir.path / "sae" / "policy" / stored.name
    assert {p.name: p.read_bytes() for p in ours.iterdir()} == {
        p.name: p.read_bytes() for p in stored.iterdir()
    }
    run_dir.path.rename(tmp_path / "moved")
    (problem,) = storage_problems(load(tmp_path, "run.resume=never"))
    assert "holds the run 'job'" in str(problem)
    # The moved folder has the copy now, and has not said that it is done.
    with pytest.raises(NotBroughtError, match="at work elsewhere"):
        open_run_dir(load(tmp_path, "run.resume=require"))


def test_a_folder_that_is_behind_its_copy_is_refused_with_what_to_do(tmp_path, stored, in_process):
    behind = tmp_path / "machine-a" / "job"
    open_run_dir(load(tmp_path)).release()
    loaded = load(tmp_path, f"run.dir={behind.parent}")
    (problem,) = storage_problems(loaded)
    said = str(problem)
    assert "its run went on elsewhere (pid" in said
    assert f"move {behind} away and start again" in said
    assert storage_problems(load(tmp_path)) == []


def test_without_a_copy_auto_begins_and_require_says_where_it_looked(tmp_path, in_process):
    with pytest.raises(ResumeError, match=r"no run 'job' under .*runs or in file://.*store"):
        open_run_dir(load(tmp_path, "run.resume=require"))
    assert not (tmp_path / "runs" / "job").exists()
    run_dir = open_run_dir(load(tmp_path))
    assert (run_dir.attempt, run_dir.path.name) == (0, "job")
    run_dir.release()


def test_a_store_that_cannot_be_asked_begins_no_second_run_of_the_id(tmp_path, stored, in_process):
    place = tmp_path / "store" / "job"
    manifest = (place / "manifest.json").read_bytes()
    (place / "manifest.json").write_text("{")
    with pytest.raises(NotBroughtError, match="begin a new run, of another id") as error:
        open_run_dir(load(tmp_path))
    assert not error.value.no_copy
    assert not (tmp_path / "runs" / "job").exists()
    (place / "manifest.json").write_bytes(manifest)
    open_run_dir(load(tmp_path)).release()


def test_an_observation_whose_bucket_is_forbidden_ends_before_anything_starts(
    tmp_path, monkeypatch, caplog
):
    asked = []

    def ask(uri, within_s):
        asked.append((uri, within_s))
        return Found(f"{uri}: access is denied", lasting=True)

    monkeypatch.setattr(storage, "ask", ask)
    settings = {"run": {"dir": str(tmp_path / "runs"), "id": "job"}, "hooks": "0"}
    settings["storage"] = {"uri": "s3://bucket/runs/{run_id}"}
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="access is denied"):
        asys_bench.observe(model, **settings)
    assert asked == [("s3://bucket/runs/job", 10.0)], "and no answer is waited for longer"
    with asys_bench.observe(model, required=False, **settings) as observation:
        model(torch.zeros(1, 2))
    assert isinstance(observation.error, ConfigError)
    assert "the model is not observed" in caplog.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.rest
def test_a_uri_is_gone_on_with_and_checked_without_being_brought(
    tmp_path, stored, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/store/job"
    assert main(["--resume", uri, "--check"]) == 0
    assert not (tmp_path / "runs").exists()
    assert main(["--resume", uri, "--set", "hooks=[{match: other}]"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "hooks[0].match: cannot change in a run that goes on" in said
    assert (tmp_path / "runs" / "job" / "run.json").exists()
    assert main(["--resume", f"file://{tmp_path}/store/nothing"]) == 2
    assert "no run has been sent to it" in " ".join(capsys.readouterr().err.split())
