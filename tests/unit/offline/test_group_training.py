"""`asys-run train` with a group: what one process trains, and what happens when a rank is killed."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asys_bench.offline import HookTraining, Job
from asys_bench.offline.hook_training import HookResult
from asys_bench.offline.plan import OfflinePlan
from asys_bench.sae import SAEConfig, load_sae
from asys_bench.sinks.archive import open_archive

THREADS = Path(__file__).parent.parent / "sae" / "thread_group.py"
SMALL = {"d_sae": 48, "k": 6, "buffer_rows": 1024, "batch_rows": 200, "dtype": "float32"}
PATIENCE_S = 240.0
MakeRun = Callable[..., Path]


def _trained(run: Path, folder: Path, group: Any = None) -> HookResult:
    job = Job("policy.mlp", "policy.mlp", SAEConfig.model_validate(SMALL))
    return HookTraining(open_archive(run), job, folder, epochs=1, group=group).run()


@pytest.mark.rest
@pytest.mark.parametrize("split", ["latents", "rows"])
def test_a_group_trains_from_an_archive_what_one_process_does(
    make_run: MakeRun, tmp_path: Path, split: str
) -> None:
    run = make_run(rows=4000)
    alone = _trained(run, tmp_path / "alone")
    with runpy.run_path(str(THREADS))["ThreadGroup"](2, split) as group:
        together = _trained(run, tmp_path / "together", group)
    assert together.finished
    assert together.steps == alone.steps > 10
    assert alone.held_out is not None
    assert together.held_out is not None
    assert together.held_out.fvu == pytest.approx(alone.held_out.fvu, abs=1e-5)
    assert alone.checkpoint is not None
    assert together.checkpoint is not None
    cfg = [json.loads((path / "cfg.json").read_text())["metadata"]["offline"]
           for path in (alone.checkpoint, together.checkpoint)]  # fmt: skip
    assert cfg[0] == cfg[1]


def _command(run: Path, out: Path, epochs: int) -> list[str]:
    sets = [f"sae={json.dumps(SMALL | {'checkpoint_interval_s': 0.5})}", "group.size=2",
            f"epochs={epochs}", "hooks=policy.mlp"]  # fmt: skip
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "train", "--archive", str(run)]
    return command + ["--out", str(out)] + [word for one in sets for word in ("--set", one)]


@pytest.mark.soak("a minute")
@pytest.mark.timeout(900)
def test_a_killed_rank_fails_the_command_and_the_same_command_goes_on(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run, out = make_run(rows=4000), tmp_path / "out"
    process = subprocess.Popen(
        _command(run, out, 5000), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (out / "policy.mlp" / "latest").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), signal.SIGKILL)
        said = process.communicate(timeout=PATIENCE_S)[0]
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert "rank 1 of 2 has ended: signal SIGKILL" in said
    assert "the same command goes on from the last checkpoint" in said
    _, before = load_sae(out / "policy.mlp" / "latest")
    again = subprocess.run(
        _command(run, out, before["offline"]["epoch"] + 1), capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "goes on from" in again.stdout
    _, after = load_sae(out / "policy.mlp" / "latest")
    assert after["training_steps"] >= before["training_steps"] > 0


def test_a_plan_refuses_one_gpu_for_a_group_and_knows_how_many_it_starts() -> None:
    assert OfflinePlan.model_validate({"group": {"size": 3}}).ranks == 3
    assert OfflinePlan().ranks == 1
    with pytest.raises(ValueError, match=r"cuda:1 is one GPU; valid: cpu, cuda, auto"):
        OfflinePlan.model_validate({"device": "cuda:1", "group": {"size": 2}})


@pytest.mark.rest
def test_a_grid_refuses_a_group(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(rows=200)
    command = [*_command(run, tmp_path / "out", 1), "--grid", "sae.k=2,4"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert said.returncode == 2, said.stdout + said.stderr
    assert "group.size 2: a grid trains each SAE in one process" in said.stdout
