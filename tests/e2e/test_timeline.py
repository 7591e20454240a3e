"""A feature appears while a model is observed: reservoir, timeline, report, diff, verify over a bus."""

from __future__ import annotations

import json
import re

import pytest
import torch

import asys_bench
from asys_bench.change.timeline.earlier import unpacked
from asys_bench.cli.run import main
from asys_bench.contracts.packet import CONSTANT_MICROBATCH
from asys_bench.rundir.timeline_document import read_timeline
from asys_bench.rundir.verify import verify_run

pytestmark = [pytest.mark.rest, pytest.mark.timeout(600)]
STEPS, ROWS, WIDTH, JOINS = 2000, 64, 24, 900


def rows(step: int, generator: torch.Generator) -> torch.Tensor:
    """Sparse sums of orthogonal features; the last one is there from step JOINS on."""
    active = torch.rand(ROWS, WIDTH, generator=generator) < 0.08
    if step < JOINS:
        active[:, -1] = False
    return active * (0.5 + torch.rand(ROWS, WIDTH, generator=generator))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(WIDTH))
    generator = torch.Generator().manual_seed(1)
    constant = torch.eye(WIDTH).repeat(4, 1)
    sae = {
        "architecture": "batchtopk",
        "d_sae": 48,
        "k": 2,
        "batch_rows": 256,
        "buffer_rows": 4096,
        "checkpoint_interval_s": 5,
    }
    observation = asys_bench.observe(
        model,
        hooks="0",
        run={"dir": str(tmp_path_factory.mktemp("runs")), "drain_timeout_s": 200},
        bus={"on_full": "block", "block_timeout_s": 50},
        sinks={
            "trainer": {"options": {"sae": sae, "max_lag_s": 1000, "final_train_s": 150}},
            "reservoir": {"kind": "reservoir"},
        },
        quiet=True,
    )
    with observation, torch.no_grad():
        for step in range(STEPS):
            model(rows(step, generator))
            if step % 50 == 0:
                with observation.constant():
                    model(constant)
            observation.step()
    return observation.run_dir


def test_the_birth_is_found_and_is_no_skill_of_the_model(run_dir, capsys):
    assert main(["timeline", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    timeline = asys_bench.open_run(run_dir).timeline("0")
    found = [one for one in timeline.births if unpacked(one.direction)[-1] > 0.8]
    assert found, shown
    assert abs(found[0].born_step - JOINS) <= 0.02 * STEPS
    assert found[0].cause == "data"  # the constant batch had it all along
    assert f"{found[0].feature}" in shown
    assert timeline.constant_moments == 40


def test_one_feature_and_one_moment_are_shown(run_dir, capsys):
    assert main(["timeline", str(run_dir), "--born", f"{JOINS - 50}:{JOINS + 50}"]) == 0
    born = read_timeline(run_dir, "0").births[0].feature
    assert main(["timeline", str(run_dir), "--feature", str(born)]) == 0
    assert "activation" in capsys.readouterr().out
    assert main(["timeline", str(run_dir), "--hook", "nothing"]) == 2


def test_the_report_has_the_birth_with_its_curve(run_dir):
    assert main(["report", str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    assert "Which features appeared when" in page
    assert "new in the data" in page


def test_two_moments_differ_in_that_feature_most(run_dir, capsys):
    assert (
        main(["diff", str(run_dir), str(run_dir), "--a", f":{JOINS - 1}", "--b", f"{JOINS}:"]) == 0
    )
    shown = capsys.readouterr().out
    sae = asys_bench.open_run(run_dir).sae("0")
    first = re.search(r"(\d+) +([\d.]+)% +([\d.]+)% ", shown)
    assert first is not None, shown
    direction = torch.nn.functional.normalize(sae.W_dec[int(first[1])], dim=0)
    assert float(direction[-1]) > 0.8, shown
    assert 10 * float(first[2]) < float(first[3])


def test_no_row_of_the_constant_batch_is_archived_or_trained_on(run_dir):
    archive = asys_bench.open_run(run_dir).archive
    microbatches = {
        int(value) for columns in archive.batches("0") for value in columns["microbatch"]
    }
    assert CONSTANT_MICROBATCH not in microbatches
    summary = json.loads((run_dir / "summary.json").read_text())
    (sae,) = summary["saes"]
    assert sae["rows"] == STEPS * ROWS


def test_every_file_is_known_to_verify(run_dir):
    checked = verify_run(run_dir)
    assert [
        (one.path, one.state, one.detail)
        for one in checked.findings
        if one.state.value not in ("ok",)
    ] == []
    assert any(one.kind == "window" for one in checked.findings)
