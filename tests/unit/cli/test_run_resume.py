"""`asys-run --resume RUN`: the run's own configuration, at its own place, or an error at once."""

from __future__ import annotations

import json

import pytest

from asys_bench.cli.run import _sources, build_parser, main
from asys_bench.config import dump_yaml, load_config
from asys_bench.run.attempts import id_of, newest_of


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """A run that was preempted, in runs/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "runs" / "20260101-000000-demo"
    run_dir.mkdir(parents=True)
    config = load_config("demo.yaml", [], env={}).config
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    document = {
        "schema": "asys.run/1", "run_id": run_dir.name, "id": run_dir.name, "hooks": [], "host_pid": 1,
        "attempts": [{"attempt": 0, "end": "preempted", "last_step": 7}], "result": {},
    }  # fmt: skip
    (run_dir / "run.json").write_text(json.dumps(document))
    return run_dir


@pytest.mark.parametrize("named", ["20260101-000000-demo", "runs/20260101-000000-demo"])
def test_a_run_is_gone_on_with_under_its_own_configuration_and_name(ended, named):
    arguments = build_parser().parse_args(["--resume", named, "--set", "monitors.log=null"])
    path, sets = _sources(arguments)
    loaded = load_config(path, sets, env={})
    run = loaded.config.run
    assert (run.resume, run.dir, id_of(run, {})) == ("require", ended.parent, ended.name)
    assert newest_of(run.dir, id_of(run, {})) == ended
    assert "log" not in loaded.config.enabled_monitors


def test_a_changed_hook_is_refused_before_anything_starts(ended, capsys):
    code = main(["--resume", ended.name, "--set", "hooks=[{match: other}]", "--check"])
    assert code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "hooks[0].match: cannot change in a run that goes on" in said
    assert main(["--resume", ended.name, "--check"]) == 0


def test_a_run_that_is_not_there_and_a_start_without_a_configuration_are_usage_errors(
    ended, capsys
):
    assert main(["--resume", "nothing"]) == 2
    assert "no run.json there" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--check"])
    assert "give --config FILE, or --resume RUN" in capsys.readouterr().err
