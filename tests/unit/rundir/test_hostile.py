"""A run's folder is input: what another has put there is neither followed out of it nor waited for."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from asys_bench.rundir.verify import State, verify_run
from asys_bench.sae import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import check_seal
from asys_bench.sae.checkpoint.trainer_state import read_config
from asys_bench.sinks.archive import ArchiveError
from asys_bench.sinks.archive.sidecar import Sidecar


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Somebody's own files, with names that a repair takes for leftovers."""
    folder = tmp_path / "canary"
    (folder / "projX" / ".tmp-work").mkdir(parents=True)
    (folder / "projX" / ".tmp-work" / "data").write_text("precious")
    (folder / ".notes.tmp").write_text("precious")
    (folder / "mine.jsonl").write_text('{"event":"a"}\nnot a whole line')
    (folder / "mine.jsonl").chmod(0o644)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    document = {"schema": "asys.run/1", "run_id": "r", "hooks": ["h"], "host_pid": 1, "result": {}}
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text("run: {name: r}\n")
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", ["sae", "archive", "monitor.log", "tensorboard", "run.json"])
def test_a_repair_follows_no_link_out_of_the_run(run, canary, name):
    target = canary / "mine.jsonl" if "." in name else canary
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    before = contents(canary)
    found = verify_run(run, repair=True)
    assert contents(canary) == before
    (finding,) = [one for one in found.findings if one.path == name]
    assert finding.state is State.DAMAGED
    assert "symbolic link" in finding.detail


def test_a_repair_removes_a_link_among_leftovers_and_not_its_target(run, canary):
    hook = run / "sae" / "h"
    hook.mkdir(parents=True)
    (hook / ".tmp-work").symlink_to(canary / "projX")
    (run / "x.json.tmp").symlink_to(canary / ".notes.tmp")
    before = contents(canary)
    verify_run(run, repair=True)
    assert contents(canary) == before
    assert not (hook / ".tmp-work").is_symlink()


def test_latest_may_only_point_at_a_checkpoint_beside_it(run, canary):
    hook = run / "sae" / "h"
    hook.mkdir(parents=True)
    (canary / "step_000000001").mkdir()
    (hook / "latest").symlink_to(canary / "step_000000001")
    (finding,) = [one for one in verify_run(run).findings if one.path == "sae/h/latest"]
    assert finding.state is State.DAMAGED


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["archive/h/archive-0-0-0.arrows", "sae/h/latest", "logs/x", "config.yaml",
                                  "metrics.csv", "tensorboard/a.tfevents.b"])  # fmt: skip
def test_a_fifo_is_named_and_not_waited_for(run, name):
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    (finding,) = [one for one in verify_run(run, repair=True).findings if one.path == name]
    assert finding.state in (State.DAMAGED, State.FOREIGN)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "nested deeper"),
        ('{"schema": "asys.run/1"}', "lacks run_id"),
        ('{"schema": "asys.run/1", "run_id": "r", "hooks": "h", "host_pid": 1}', "hooks is 'h'"),
        ('{"schema": "asys.run/1", "run_id": "r", "hooks": [1], "host_pid": 1}', "not all names"),
        ("[" + "[]," * 3_000_000 + "1]", "more than 8388608 bytes"),
    ],
)
def test_a_run_file_that_is_no_run_file_is_damaged(run, text, reason):
    (run / "run.json").write_text(text)
    (finding,) = [one for one in verify_run(run).findings if one.path == "run.json"]
    assert finding.state is State.DAMAGED
    assert reason in finding.detail


@pytest.mark.timeout(120)
def test_files_of_holes_take_no_time_and_no_memory(run):
    for name in ("run.json", "metrics.csv", "monitor.log"):
        (run / name).touch()
        os.truncate(run / name, 30 << 30)
    found = {one.path: one for one in verify_run(run, repair=True).findings}
    for name in ("run.json", "metrics.csv", "monitor.log"):
        assert found[name].state is State.DAMAGED
        assert "file of holes" in found[name].detail
        assert (run / name).stat().st_size == 30 << 30


@pytest.mark.timeout(120)
def test_a_configuration_that_expands_without_end_is_damaged(run):
    text = "a0: &a0 {x0: 1, y0: 2, z0: 3}\n"
    for n in range(1, 12):
        text += f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n"
    (run / "config.yaml").write_text(text)
    (finding,) = [one for one in verify_run(run).findings if one.path == "config.yaml"]
    assert finding.state is State.DAMAGED
    assert "expands to more than" in finding.detail


def test_a_record_that_claims_to_be_endless_is_damage(run):
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "a.tfevents.b").write_bytes(struct.pack("<QI", 1 << 40, 0) + b"x" * 64)
    (finding,) = [one for one in verify_run(run).findings if "tfevents" in one.path]
    assert finding.state is State.DAMAGED


def test_a_tree_without_end_is_a_finding(run):
    (run / "logs").joinpath(*["d"] * 40).mkdir(parents=True)
    (finding,) = [one for one in verify_run(run).findings if one.path == "logs"]
    assert finding.state is State.DAMAGED
    assert "nested deeper than 16 folders" in finding.detail


@pytest.mark.parametrize(
    "shard",
    [
        "../../canary/archive-0-0-0.arrows",
        "/x/archive-0-0-0.arrows",
        "../run.json",
        "h/../../run.json",
        "h/notes.txt",
        "../archive-0-0-0.arrows",
    ],
)
def test_a_record_of_deletions_deletes_nothing_but_shards(run, canary, shard):
    (canary / "archive-0-0-0.arrows").write_bytes(b"precious")
    (run / "archive-0-0-0.arrows").write_bytes(b"not in the archive")
    (run / "archive" / "h").mkdir(parents=True)
    (run / "archive" / "h" / "notes.txt").write_text("mine")
    line = {"shard": shard, "hook": "h", "rows": 1, "packets": 1, "bytes": 1}
    (run / "archive" / "archive-0.deleted.jsonl").write_text(json.dumps(line) + "\n")
    before = contents(run) | contents(canary)
    verify_run(run, repair=True)
    assert contents(run) | contents(canary) == before


@pytest.mark.timeout(120)
def test_a_shard_of_holes_is_damaged_and_a_repair_leaves_it_alone(run):
    shard = run / "archive" / "h" / "archive-0-0-0.arrows"
    shard.parent.mkdir(parents=True)
    shard.touch()
    os.truncate(shard, 30 << 30)
    for repair in (False, True):
        (finding,) = [
            one for one in verify_run(run, repair=repair).findings if one.path.endswith(".arrows")
        ]
        assert finding.state is State.DAMAGED
        assert "file of holes" in finding.detail
    assert shard.stat().st_size == 30 << 30


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("archive-0-0-0.json", lambda folder: Sidecar.read(folder / "archive-0-0-0.arrows")),
        ("manifest.json", check_seal),
        ("trainer_state.json", read_config),
    ],
)
def test_a_file_of_too_many_fields_is_refused_before_each_of_them_is_an_error(tmp_path, name, read):
    (tmp_path / name).write_text("{" + ",".join(f'"{n}":{{}}' for n in range(400_000)) + "}")
    tracemalloc.start()
    try:
        with pytest.raises((ArchiveError, CheckpointError), match="more than 262144 bytes"):
            read(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
