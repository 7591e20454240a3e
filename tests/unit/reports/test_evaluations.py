"""The report shows what SAEs do to the model: the newest figures, and how they changed over the run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from asys_bench.reports.run_report.evaluations import by_position, figure_rows, modes_of
from asys_bench.reports.run_report.page import render_run
from asys_bench.reports.run_report.record import read_run
from asys_bench.rundir.evaluation_documents import write_evaluation

TINY = Path(__file__).parent.parent / "rundir" / "tiny_lm.py"


@pytest.fixture
def run_dir(tmp_path):
    return runpy.run_path(str(TINY))["write_run"](tmp_path, {"kind": "synthetic"})


def damage(ce):
    return {"ce": ce, "kl_mean": ce / 10, "kl_p95": ce / 5}


def interventions(recovered):
    return {
        "ce_recovered": recovered, "ce_recovered_from_mean": 0.5, "kl_recovered": None,
        "spliced": damage(3.25), "zero": damage(9.5), "mean": damage(7.75),
    }  # fmt: skip


def document(second, recovered, **more):
    return {
        "schema": "asys.evaluation/1", "sae": "transformer.h.1", "architecture": "topk", "d_sae": 64,
        "steps": second * 10, "checkpoint": f"x/step_{second:09d}",
        "checkpoint_unix_ns": 1 + second * 10**9, "weights": {"host_step": 1234},
        "rows": {"fvu": 0.125, "l0": 31.5, "dead_share": 0.0375, "fvu_all": None,
                 "fvu_by_position": [None, 0.25, 0.5, 0.75]},
        "language": {"tokens": 2000, "predicted": 1990, "ce": 3.0, "passed": interventions(recovered),
                     "replaced": interventions(-0.75)},
    } | more  # fmt: skip


def page(run_dir):
    return render_run(read_run(run_dir), [], {})


def test_the_newest_figures_are_shown_both_ways(run_dir):
    for second, recovered in ((30, 0.8125), (60, 0.9375)):
        write_evaluation(run_dir, document(second, recovered))
    shown = page(run_dir)
    assert "What they do to the model" in shown
    assert "0.9375" in shown
    assert "-0.7500" in shown
    assert "weights of host step 1,234" in shown
    assert "step 600" in shown
    for words in ("passed", "replaced", "CE with zeros", "FVU at position 2-3"):
        assert words in shown
    assert "CE recovered over time: transformer.h.1" in shown
    assert "KL with the SAE in the model over time" in shown


def test_one_evaluation_is_no_curve_and_none_is_no_section(run_dir):
    assert "What they do to the model" not in page(run_dir)
    write_evaluation(run_dir, document(30, 0.8125))
    assert "0.8125" in page(run_dir)
    assert "over time" not in page(run_dir)


def test_rows_say_each_figure_once_per_mode_and_what_is_unknown_as_a_dash():
    rows = dict(figure_rows(document(30, 0.8125)))
    assert modes_of(document(30, 0.8125)) == ["passed", "replaced"]
    assert rows["CE, 1,990 tokens"] == ["3.0000", ""]
    assert rows["CE with the SAE"] == ["3.2500", "3.2500"]
    assert rows["CE recovered"] == ["0.8125", "-0.7500"]
    assert rows["KL recovered"] == ["-", "-"]
    assert rows["KL, p95"] == ["0.65", "0.65"]
    assert rows["dead features"] == ["3.8%", ""]
    assert rows["FVU of all rows"] == ["-", ""]
    assert rows["FVU at position 1"] == ["0.2500", ""]
    assert "FVU at position 0" not in rows, "no row was there"


def test_positions_come_in_octaves():
    assert by_position([1.0, 2.0, 3.0, 5.0, 6.0]) == [
        ("0", 1.0), ("1", 2.0), ("2-3", 4.0), ("4", 6.0),
    ]  # fmt: skip
    assert by_position([]) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"language": 5},
        {"language": {"passed": [], "replaced": {"spliced": 3, "ce_recovered": "x"}}},
        {"rows": {"fvu_by_position": 7, "fvu": "x"}},
        {"language": None, "policy": {"replaced": {}}},
        {"weights": 3, "steps": None},
    ],
)
def test_a_strangers_document_breaks_no_page(run_dir, bad):
    write_evaluation(run_dir, document(30, 0.5) | bad)
    path = write_evaluation(run_dir, document(60, 0.5) | bad)
    assert json.loads(path.read_text())["steps"] in (600, None)
    assert "What they do to the model" in page(run_dir)
