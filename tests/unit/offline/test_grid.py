"""A grid of SAEs: which points it has, what is said of wrong ones, and which of its SAEs is best."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from asys_bench.config import ConfigError
from asys_bench.offline.grid import MAX_POINTS, Axis, read_axes, read_points, read_tasks
from asys_bench.offline.grid_results import (
    CSV_FILE,
    DONE,
    FAILED,
    JSON_FILE,
    STOPPED,
    GridFolder,
    GridFolderError,
    GridResult,
    stand,
)

DONE_ONE = GridResult(
    {"sae.k": "8"}, "policy", ("policy",), DONE, "k-8/policy", fvu=0.25, l0=8.0, held_out_rows=100
)


def tasks_of(run_dir, *texts, sets=()):
    return read_tasks(read_points(run_dir, None, list(sets), read_axes(texts)), ["policy"])


def test_values_are_cut_at_commas_outside_brackets_and_quotes():
    assert read_axes(["sae.k=16, 32", 'hooks=["a,b",c],[d]', "overrides['x,y']=1"][:2]) == [
        Axis("sae.k", ("16", "32")),
        Axis("hooks", ('["a,b",c]', "[d]")),
    ]
    assert read_axes(['overrides["a.b,*"].k=1,2']) == [Axis('overrides["a.b,*"].k', ("1", "2"))]


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["sae.k"], "must be path=value"),
        (["=1,2"], "must be path=value"),
        (["sae.k=16,,32"], "has an empty value"),
        (["sae.k="], "has an empty value"),
        (["sae.k=16,16"], "has a value twice"),
        (["sae.k=16", "sae.k=32"], "is an axis already"),
        ([f"seed={','.join(map(str, range(101)))}", "epochs=" + ",".join(map(str, range(1, 101)))],
         f"10,100 points are more than {MAX_POINTS:,}"),
    ],
)  # fmt: skip
def test_a_wrong_axis_is_refused_with_what_to_write(texts, why):
    with pytest.raises(ConfigError, match=why) as told:
        read_axes(texts)
    assert all(problem.file.startswith("--grid") for problem in told.value.problems)
    assert all(problem.fix for problem in told.value.problems)


def test_points_are_the_product_with_the_last_axis_fastest_and_a_folder_each(tmp_path):
    axes = read_axes(["sae.k=4,8", "sae.expansion_factor=2,16", "epochs=3"])
    points = read_points(tmp_path, None, ["seed=7"], axes)
    assert [(p.plan.sae.k, p.plan.sae.expansion_factor, p.plan.epochs, p.plan.seed) for p in points] == [
        (4, 2, 3, 7), (4, 16, 3, 7), (8, 2, 3, 7), (8, 16, 3, 7),
    ]  # fmt: skip
    assert points[1].folder == "k-4_expansion_factor-16_epochs-3"
    assert points[1].values == (("sae.k", "4"), ("sae.expansion_factor", "16"), ("epochs", "3"))
    assert len({point.folder for point in points}) == 4


def test_two_axes_of_one_last_name_have_their_whole_paths_in_the_folder(tmp_path):
    axes = read_axes(["sae.seed=1", "seed=2"])
    (point,) = read_points(tmp_path, None, [], axes)
    assert point.folder == "sae.seed-1_seed-2"


def test_every_wrong_value_is_named_once_with_the_valid_ones(tmp_path):
    axes = read_axes(["sae.architecture=topk,tpok", "sae.k=8,many", "sae.kk=3"])
    with pytest.raises(ConfigError) as told:
        read_points(tmp_path, None, [], axes)
    found = {problem.file: problem for problem in told.value.problems}
    assert found.keys() == {"--grid sae.architecture=tpok", "--grid sae.k=many", "--grid sae.kk=3"}
    assert "topk" in found["--grid sae.architecture=tpok"].valid
    assert found["--grid sae.kk=3"].message == "unknown key `kk`"
    assert "k" in found["--grid sae.kk=3"].valid


def test_a_task_is_one_sae_and_its_folder_is_that_of_its_point_and_hook(tmp_path):
    points = read_points(tmp_path, None, [], read_axes(["sae.k=4,8"]))
    tasks = read_tasks(points, ["policy.0", "value/1"])
    assert [(t.point.folder, t.job.hook, t.job.config.k) for t in tasks] == [
        ("k-4", "policy.0", 4), ("k-4", "value/1", 4), ("k-8", "policy.0", 8), ("k-8", "value/1", 8),
    ]  # fmt: skip
    assert tasks[0].folder == "k-4/policy.0"
    assert tasks[1].folder.startswith("k-4/value_1-")


def result(folder, fvu, l0, **more):
    return replace(DONE_ONE, folder=folder, fvu=fvu, l0=l0, **more)


def test_best_is_the_lowest_fvu_of_its_hook_then_the_fewest_features_then_the_first():
    results = [
        result("a", 0.30, 8.0),
        result("b", 0.20, 32.0),
        result("c", 0.20, 16.0),
        result("d", 0.20, 16.0),
        result("e", 0.01, 1.0, hooks=("value",)),
        result("f", 0.00, 0.0, state=STOPPED),
        result("g", 0.00, 0.0, held_out_rows=0),
        result("h", None, None, state=FAILED),
    ]
    assert stand(results).best == {"c", "e"}


def test_the_front_has_those_that_nobody_beats_in_one_figure_without_losing_the_other():
    results = [
        result("a", 0.30, 8.0),
        result("b", 0.20, 32.0),
        result("beaten", 0.31, 9.0),
        result("same l0", 0.35, 8.0),
        result("c", 0.10, 64.0),
    ]
    assert stand(results).front == {"a", "b", "c"}
    assert stand([]).best == frozenset()


def test_results_are_kept_as_they_come_and_what_is_done_is_not_left(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    tasks = tasks_of(tmp_path, "sae.k=4,8")
    folder = GridFolder(out, tasks, "run-1")
    assert folder.left() == tasks
    folder.add(replace(DONE_ONE, folder="k-8/policy"))
    (out / "k-8" / "policy").mkdir(parents=True)
    folder.add(replace(DONE_ONE, folder="k-4/policy", state=FAILED, error="disk full", fvu=None))
    again = GridFolder(out, tasks, "run-1")
    assert again.left() == [tasks[0]]
    assert [one.folder for one in again.in_order()] == ["k-4/policy", "k-8/policy"]
    (out / "k-8" / "policy").rmdir()
    assert GridFolder(out, tasks, "run-1").left() == tasks, "its checkpoints are gone"
    document = json.loads((out / JSON_FILE).read_text())
    assert [one["best"] for one in document["results"]] == [False, True]
    rows = list(csv.DictReader((out / CSV_FILE).read_text().splitlines()))
    assert [(row["sae.k"], row["state"], row["fvu"], row["error"]) for row in rows] == [
        ("8", "failed", "", "disk full"), ("8", "done", "0.25", ""),
    ]  # fmt: skip


def test_a_grid_that_grows_keeps_what_was_done_and_one_that_shrinks_forgets_nothing(tmp_path):
    out = tmp_path / "out"
    for k in ("4", "8", "16"):
        (out / f"k-{k}" / "policy").mkdir(parents=True)
    small, large = tasks_of(tmp_path, "sae.k=4,8"), tasks_of(tmp_path, "sae.k=4,8,16")
    folder = GridFolder(out, small, "run-1")
    for task in small:
        folder.add(replace(DONE_ONE, folder=task.folder))
    grown = GridFolder(out, large, "run-1")
    assert [task.folder for task in grown.left()] == ["k-16/policy"]
    grown.add(replace(DONE_ONE, folder="k-16/policy"))
    GridFolder(out, small, "run-1").write()
    assert GridFolder(out, large, "run-1").left() == []


def test_results_of_other_settings_or_another_archive_are_not_taken_for_these(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    GridFolder(out, tasks_of(tmp_path, "sae.k=4,8"), "run-1").write()
    with pytest.raises(GridFolderError, match=r"epochs was 4, is 5.*--out"):
        GridFolder(out, tasks_of(tmp_path, "sae.k=4", sets=["epochs=5"]), "run-1")
    with pytest.raises(GridFolderError, match=r"archive of run-1, not run-2"):
        GridFolder(out, tasks_of(tmp_path, "sae.k=4"), "run-2")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": "other"}',
        '{"schema": "asys.grid/1", "archive": "run-1", "results": [3]}',
    ],
)
def test_a_file_that_is_no_result_of_a_grid_is_refused(tmp_path, text):
    (tmp_path / JSON_FILE).write_text(text)
    with pytest.raises(GridFolderError, match=JSON_FILE):
        GridFolder(tmp_path, tasks_of(tmp_path, "sae.k=4"), "run-1")
