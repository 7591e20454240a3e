"""Which folder a run has, what may change when it goes on, and what is never written over."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from asys_bench.config import ConfigError, load_config
from asys_bench.config.sections.run import RunConfig
from asys_bench.monitors.metrics_csv import MetricsCsv, Row
from asys_bench.run.attempts import (
    AttemptEnd,
    Continuation,
    ResumeError,
    id_of,
    new_entry,
    open_run_dir,
    preview,
)
from asys_bench.workers.run_lock import RunBusyError

OVERLAY = """
extends: profile_consumer.yaml
run: {resume: auto, id: job, dir: %s}
"""


LISTS = '{"schema": "asys.run/1", "run_id": "job", "hooks": [], "host_pid": 1, "attempts": %s}'


def load(folder, *sets):
    path = folder / "mine.yaml"
    path.write_text(OVERLAY % (folder / "runs"))
    return load_config(path, sets, env={})


def attempt(loaded, end=AttemptEnd.PREEMPTED, **entry):
    """One attempt, as far as its folder tells of it; returns its `RunDir`."""
    from asys_bench.config import dump_yaml

    run_dir = open_run_dir(loaded)
    run_dir.write_text("config.yaml", dump_yaml(loaded.config))
    made = {**new_entry(run_dir, 0, 1), "end": end, **entry}
    run_dir.write_json(
        "run.json",
        {
            "schema": "asys.run/1", "run_id": run_dir.run_id, "id": run_dir.id, "hooks": [],
            "host_pid": 1, "attempts": [*run_dir.earlier, made], "result": None,
        },
    )  # fmt: skip
    run_dir.release()
    return run_dir


@pytest.mark.parametrize(
    ("run", "env", "wanted"),
    [
        ({"id": "mine"}, {"SLURM_JOB_ID": "7"}, "mine"),
        ({"name": "ppo"}, {}, "ppo"),
        ({"name": "ppo"}, {"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "x"}, "7-ppo"),
        ({"name": "ppo"}, {"TORCHELASTIC_RUN_ID": "a/b"}, "a-b-ppo"),
        ({"name": "ppo"}, {"TORCHELASTIC_RUN_ID": "none"}, "ppo"),
        ({"name": "ppo"}, {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}, "7-ppo"),
        ({"name": "ppo"}, {"SLURM_JOB_ID": "7", "SLURM_NODEID": "2"}, "7-ppo-node2"),
        ({"id": "mine"}, {"GROUP_RANK": "1", "SLURM_NODEID": "2"}, "mine-node1"),
    ],
)
def test_the_id_is_the_given_one_or_the_jobs_and_each_node_has_its_own(run, env, wanted):
    assert id_of(RunConfig(**run), env) == wanted


def test_a_run_goes_on_in_its_folder_and_never_means_a_new_one(tmp_path):
    first = attempt(load(tmp_path))
    (first.path / "summary.json").write_text("{}")
    second = attempt(load(tmp_path))
    third = open_run_dir(load(tmp_path))
    assert [one.attempt for one in (first, second, third)] == [0, 1, 2]
    assert {one.path for one in (first, second, third)} == {tmp_path / "runs" / "job"}
    assert not (first.path / "summary.json").exists(), "of an attempt that is over"
    assert [one["began"] for one in third.earlier] == ["new", "after: preempted"]
    with pytest.raises(RunBusyError, match="is in use"):
        open_run_dir(load(tmp_path))
    third.release()
    beside = open_run_dir(load(tmp_path, "run.resume=never"))
    assert (beside.attempt, beside.path.name) == (0, "job-2")
    beside.release()


def test_without_a_run_auto_begins_one_and_require_says_that_there_is_none(tmp_path):
    with pytest.raises(ResumeError, match="no run 'job' under"):
        open_run_dir(load(tmp_path, "run.resume=require"))
    assert not (tmp_path / "runs" / "job").exists()
    open_run_dir(load(tmp_path)).release()
    again = open_run_dir(load(tmp_path))  # killed before it had a run.json
    assert (again.attempt, again.path.name) == (0, "job")
    again.release()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.json", "{", "cannot be read"),
        ("run.json", '{"schema": "asys.run/1", "run_id": "job", "hooks": [], "host_pid": 1}', "attempts"),
        ("run.json", LISTS % '[{"attempt": 0, "first_packet": "x"}]', "attempts"),
        ("run.json", LISTS % '[{"attempt": 0, "account": [1]}]', "attempts"),
        ("run.json", LISTS % '[{"attempt": 0, "account": {}}]', "attempts"),
        ("run.json", LISTS % '[{"attempt": 0, "last_step": 1e400}]', "attempts"),
        ("config.yaml", "run: [", "config.yaml"),
        ("sae/a/step_000000001/manifest.json", "{", "no checkpoint of an SAE is whole"),
    ],
)  # fmt: skip
def test_a_damaged_run_stays_as_it_is_and_auto_begins_beside_it_again_and_again(
    tmp_path, caplog, name, text, words
):
    first = attempt(load(tmp_path))
    file = first.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    before = {p: p.read_bytes() for p in first.path.rglob("*") if p.is_file() and p.name[0] != "."}
    with pytest.raises(ResumeError, match=words):
        open_run_dir(load(tmp_path, "run.resume=require"))
    with caplog.at_level(logging.WARNING):
        second = attempt(load(tmp_path))
    assert words in caplog.text
    assert (second.path.name, second.attempt, second.id) == ("job-2", 0, "job")
    third = attempt(load(tmp_path))
    assert (third.path.name, third.attempt) == ("job-2", 1)
    now = {p: p.read_bytes() for p in first.path.rglob("*") if p.is_file() and p.name[0] != "."}
    assert now == before


@pytest.mark.parametrize(
    "name",
    [
        *("archive", "archive/0", "archive/0/archive-0-0.0-0.arrows", "archive/latest"),
        *("host", "logs", "latest/x"),
    ],
)
def test_a_run_that_leads_out_of_itself_is_not_gone_on_from(tmp_path, name):
    first = attempt(load(tmp_path))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "step_000000100").mkdir()
    link = first.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(ResumeError, match="is a symbolic link"):
        open_run_dir(load(tmp_path, "run.resume=require"))
    beside = open_run_dir(load(tmp_path))
    assert beside.path.name == "job-2"
    beside.release()
    assert [path.name for path in outside.iterdir()] == ["step_000000100"]


def test_what_a_worker_said_of_an_attempt_is_passed_over_where_it_is_no_number(tmp_path):
    first = attempt(load(tmp_path), end=None)
    (first.path / "logs").mkdir(exist_ok=True)
    said = {"attempt": 0, "unix_ns": 5, "host_step": 7, "weights_version": 3, "account": None}
    for name, changed in (("a", {"unix_ns": "soon"}), ("b", {"host_step": [8]}), ("c", {})):
        (first.path / "logs" / f"{name}.account.json").write_text(json.dumps(said | changed))
    second = open_run_dir(load(tmp_path, "run.resume=require"))
    assert (second.earlier[0]["end"], second.earlier[0]["last_step"]) == ("killed", 7)
    second.release()


def test_a_fifo_in_a_run_is_not_waited_for(tmp_path):
    first = attempt(load(tmp_path))
    os.mkfifo(first.path / "metrics.csv")
    with pytest.raises(ResumeError, match="is a FIFO"):
        open_run_dir(load(tmp_path, "run.resume=require"))


def test_a_stores_link_to_its_newest_checkpoint_is_no_damage(tmp_path):
    first = attempt(load(tmp_path))
    (first.path / "host-state").mkdir()
    (first.path / "host-state" / "latest").symlink_to("step_000000001")
    second = open_run_dir(load(tmp_path, "run.resume=require"))
    assert second.attempt == 1
    second.release()


def test_a_folder_of_something_else_is_never_taken_over(tmp_path):
    theirs = tmp_path / "runs" / "job"
    theirs.mkdir(parents=True)
    (theirs / "thesis.tex").write_text("x")
    found = open_run_dir(load(tmp_path))
    assert found.path.name == "job-2"
    found.release()


@pytest.mark.parametrize(
    "changed",
    [
        "host.options.ppo.total_timesteps=7",
        "sinks.trainer.options.sae.total_steps=9",
        "sinks.trainer.options.sae.passes=2",
        "sinks.archive.options.max_gib=1",
        "monitors.log.options.interval_s=3",
        "monitors.log=null",
        "sinks.archive.enabled=false",
        "bus.backend=cpp_spmc",
        "hooks.0.sampling.max_rate=0.5",
    ],
)
def test_length_budgets_monitors_sampling_and_bus_may_change(tmp_path, changed):
    attempt(load(tmp_path))
    assert preview(load(tmp_path, changed)) == []
    found = open_run_dir(load(tmp_path, changed))
    assert found.attempt == 1
    found.release()


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("hooks: [{match: other}]", "hooks[0].match"),
        ("sinks: {trainer: {options: {sae: {d_sae: 99}}}}", "sinks.trainer.options.sae.d_sae"),
        ("sinks: {trainer: {options: {sae: {dtype: bfloat16}}}}", "sinks.trainer.options.sae.dtype"),
        (
            "sinks: {trainer: {options: {sae: {architecture: jumprelu}}}}",
            "sinks.trainer.options.sae.architecture",
        ),
        (
            "sinks: {trainer: {options: {overrides: {'*': {d_sae: 64}}}}}",
            'sinks.trainer.options.overrides["*"].d_sae',
        ),
        ("host: {kind: synthetic}", "host.kind"),
        ("run: {seed: 3}", "run.seed"),
    ],
)  # fmt: skip
def test_what_the_runs_files_are_made_of_is_refused_with_its_line(tmp_path, line, path):
    attempt(load(tmp_path))
    changed = tmp_path / "changed.yaml"
    changed.write_text(f"extends: mine.yaml\n{line}\n")
    loaded = load_config(changed, env={})
    with pytest.raises(ConfigError) as refused:
        open_run_dir(loaded)
    said = [str(problem) for problem in refused.value.problems]
    assert [problem.path for problem in refused.value.problems if problem.path == path], said
    assert f"{changed}:2" in " ".join(said)
    assert "cannot change in a run that goes on" in said[0]
    assert preview(loaded) == list(refused.value.problems)
    again = open_run_dir(load(tmp_path))  # and the refusal has left no lock
    again.release()


def test_a_killed_attempt_has_the_account_of_its_last_worker_and_repeated_steps_are_counted(
    tmp_path,
):
    first = attempt(load(tmp_path), end=None)
    logs = first.path / "logs"
    logs.mkdir()
    for worker, moment, step in (("archive-0", 20, 70), ("trainer-0", 10, 70), ("old-0", 99, 5)):
        account = {"produced": moment, "groups": []}
        document = {
            "attempt": 1 if worker == "old-0" else 0, "unix_ns": moment, "host_step": step,
            "weights_version": 4, "account": account,
        }  # fmt: skip
        (logs / f"{worker}.account.json").write_text(json.dumps(document))
    (logs / "odd-0.account.json").write_text("{")
    second = open_run_dir(load(tmp_path))
    (killed,) = second.earlier
    assert (killed["end"], killed["last_step"], killed["account"]["produced"]) == ("killed", 70, 20)
    assert new_entry(second, 50, 1)["repeated_steps"] == 20
    assert new_entry(second, 90, 1)["repeated_steps"] == 0
    assert Continuation.after(second.earlier) == Continuation(4, 20)
    second.release()


def test_an_attempt_that_was_killed_with_its_workers_has_the_last_step_that_a_monitor_read(
    tmp_path,
):
    first = attempt(load(tmp_path), end=None)
    file = MetricsCsv(first.path / "metrics.csv", 0)
    for step in (10, 70):
        file.write(float(step), 1e9 + step, [Row("host", "host_steps", step), Row("host", "x", 1)])
    file.close()
    second = open_run_dir(load(tmp_path))
    (killed,) = second.earlier
    assert (killed["end"], killed["last_step"], killed["account"]) == ("killed", 70, None)
    assert new_entry(second, 50, 1)["repeated_steps"] == 20
    second.release()


def test_ranks_may_become_more_or_fewer(tmp_path):
    attempt(load(tmp_path), ranks=4)
    second = open_run_dir(load(tmp_path))
    assert (second.earlier[0]["ranks"], new_entry(second, 0, 2)["ranks"]) == (4, 2)
    second.release()


def test_a_run_that_cannot_be_read_is_no_run_of_another_id(tmp_path):
    Path(tmp_path / "runs").mkdir()
    other = attempt(load(tmp_path, "run.id=job-2"))
    mine = open_run_dir(load(tmp_path))
    assert (other.path.name, mine.path.name) == ("job-2", "job")
    mine.release()
    attempt(load(tmp_path))
    again = open_run_dir(load(tmp_path))
    assert (again.path.name, again.attempt) == ("job", 1)
    again.release()
