"""`asys-run train --grid` over a small archive, one SAE after another."""

from __future__ import annotations

import io
import json
import signal

import pytest
import torch
from rich.console import Console

from asys_bench.cli import run as asys_run
from asys_bench.cli.train_grid import GridCommand
from asys_bench.offline import HookTraining, read_plan
from asys_bench.offline.grid import read_axes, read_points, read_tasks
from asys_bench.offline.grid_results import DONE
from asys_bench.sinks.archive import open_archive

SETS = ["sae.d_sae=24", "sae.buffer_rows=2048", "sae.threads=1", "epochs=1"]
WEIGHTS = "latest/sae_weights.safetensors"


def command(run, out, *texts):
    """What was said, and the exit code."""
    archive = open_archive(run)
    tasks = read_tasks(read_points(run, None, SETS, read_axes(texts)), archive.hooks)
    said = io.StringIO()
    console = Console(file=said, width=200)
    return GridCommand(console, archive, str(run), out, tasks), said


def test_each_point_is_what_a_training_with_these_values_makes(make_run, tmp_path):
    run, out = make_run(rows=2_000), tmp_path / "grid"
    grid, said = command(run, out, "sae.k=2,4", "sae.learning_rate=1e-3,1e-2")
    assert grid.run(None) == 0
    document = json.loads((out / "grid.json").read_text())
    assert [one["values"]["sae.k"] for one in document["results"]] == ["2", "2", "4", "4"]
    assert {one["state"] for one in document["results"]} == {DONE}
    assert [one["threads"] for one in document["results"]] == [1] * 4
    (best,) = [one for one in document["results"] if one["best"]]
    assert best["fvu"] == min(one["fvu"] for one in document["results"])
    assert said.getvalue().count("best") == 2, "in the table, and the rule"
    hook = open_archive(run).hooks[0]
    plan = read_plan(run, None, [*SETS, "sae.k=4", "sae.learning_rate=1e-3"])
    (job,) = plan.jobs([hook])
    HookTraining(open_archive(run), job, tmp_path / "alone", epochs=1, model_name=run.name).run()
    alone = (tmp_path / "alone" / WEIGHTS).read_bytes()
    assert (out / "k-4_learning_rate-1e-3" / hook / WEIGHTS).read_bytes() == alone
    assert (out / "k-4_learning_rate-1e-2" / hook / WEIGHTS).read_bytes() != alone


@pytest.mark.rest
def test_a_grid_that_was_stopped_goes_on_where_it_was_and_what_is_done_is_not_trained_again(
    make_run, tmp_path
):
    run, out = make_run(rows=4_000), tmp_path / "grid"
    whole, _ = command(run, tmp_path / "whole", "sae.k=2,4")
    assert whole.run(None) == 0
    grid, said = command(run, out, "sae.k=2,4")
    tell = grid._tell
    grid._tell = lambda *about: (tell(*about), grid._on_signal(signal.SIGINT, None))
    assert grid.run(None) == 130
    assert "the same command goes on" in said.getvalue()
    first = json.loads((out / "grid.json").read_text())
    assert [one["state"] for one in first["results"]] == [DONE]
    grid, said = command(run, out, "sae.k=2,4")
    assert grid.run(None) == 0
    assert "1 of 2 SAEs are done" in said.getvalue()
    second = json.loads((out / "grid.json").read_text())
    assert second["results"][0]["wall_s"] == first["results"][0]["wall_s"], "as it was kept"
    hook = open_archive(run).hooks[0]
    for k in (2, 4):
        ours = (out / f"k-{k}" / hook / WEIGHTS).read_bytes()
        assert ours == (tmp_path / "whole" / f"k-{k}" / hook / WEIGHTS).read_bytes()


def test_an_sae_that_fails_does_not_keep_the_others_from_being_trained(make_run, tmp_path):
    run, out = make_run(rows=4_000), tmp_path / "grid"
    (tmp_path / "gone").mkdir()
    grid, said = command(run, out, "sae.k=2,4", f"start_from={{'*': {tmp_path}/gone}},{{}}")
    assert grid.run(None) == 1
    states = [one["state"] for one in json.loads((out / "grid.json").read_text())["results"]]
    assert states == ["failed", "done", "failed", "done"]
    assert "failed: " in said.getvalue()


def test_the_command_names_every_wrong_value_and_trains_nothing(make_run, capfd):
    run = make_run(rows=500)
    grid = ["--grid", "sae.k=2,none", "sae.colour=3"]
    assert asys_run.main(["train", "--archive", str(run), *grid]) == 2
    said = capfd.readouterr().err
    assert "--grid sae.k=none" in said
    assert "unknown key `colour`" in said
    assert not (run / "sae-grid").exists()


def test_ray_without_a_grid_is_refused(make_run, capfd):
    assert asys_run.main(["train", "--archive", str(make_run(rows=100)), "--ray", "auto"]) == 2
    assert "--ray needs a --grid" in capfd.readouterr().out


def test_a_machine_without_ray_is_told_what_to_install(make_run, capfd, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    run = make_run(rows=500)
    words = ["train", "--archive", str(run), "--grid", "sae.k=2", "--ray", "auto"]
    assert asys_run.main(words) == 2
    assert "pip install 'asys-i[ray]'" in capfd.readouterr().out


@pytest.fixture(autouse=True)
def _denormals():
    yield
    torch.set_flush_denormal(False)
