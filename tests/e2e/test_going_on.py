"""A run outlives its process: stopped, killed and gone on with, and what it then has in its folder."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import asys_bench
from asys_bench.config import load_config
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import attempts_in
from asys_bench.run.experiment import ExperimentPipeline
from asys_bench.rundir.open_run import open_run

pytestmark = pytest.mark.timeout(600)
SMALL = """
extends: profile_consumer.yaml
run: {resume: auto, id: job, drain_timeout_s: 60, dir: %(folder)s}
host: %(host)s
bus: {backend: cpp_spmc, on_full: block, block_timeout_s: 50}
hooks: [{match: %(hook)s, sampling: {max_rate: 1, min_rate: 1}}]
sinks:
  archive: {enabled: false}
  trainer:
    workers: 1
    options:
      max_lag_s: 1000
      sae: {d_sae: 96, k: 8, passes: 0.5, batch_rows: 32, buffer_rows: 512, min_buffer_fill_ratio: 0.1,
            checkpoint_interval_s: 1000, threads: 1}
"""


def accounts(run_dir: Path) -> list[dict[str, Any]]:
    """Of each attempt, checked: the identity holds."""
    found = [one["account"] for one in attempts_in(run_dir)]
    for account in found:
        assert account is not None
        assert [group["imbalance"] for group in account["groups"]] == [0] * len(account["groups"])
    return found


@dataclass(frozen=True)
class Case:
    """A host that is stopped at two of its steps. first_steps: of the three attempts. packets: of all."""

    hook: str
    host: dict[str, Any]
    stops: tuple[int, int]
    first_steps: list[int]
    packets: int


def ppo_case(_: Path) -> Case:
    """Whole between two rollouts of 128 steps."""
    options = {
        "total_timesteps": 1024, "n_envs": 4, "n_steps": 32, "batch_size": 64, "n_epochs": 2,
    }  # fmt: skip
    host = {"kind": "ppo", "options": {"ppo": options}}
    return Case("mlp_extractor.policy_net", host, (300, 700), [0, 384, 768], 8 * (32 + 4))


def language_case(folder: Path) -> Case:
    """A language model that trains, with dropout, on 64 tokens a step."""
    tiny = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "rundir" / "tiny_lm.py"))
    tiny["write_model"](folder)
    options = tiny["options"](
        folder, task="train", total_tokens=40 * 64, learning_rate=1e-3, shuffle=True
    )
    host = {"kind": "transformers", "options": {"transformers": options}}
    return Case(tiny["LAYER"], host, (13, 27), [0, 14, 28], 41)  # the text's last batch is shorter


def drained_life(folder: Path, case: Case, stop_at: int | None = None) -> Path:
    """One attempt whose host waits after each packet until the workers have had it."""
    path = folder / "small.yaml"
    values = {"folder": folder, "host": json.dumps(case.host), "hook": json.dumps(case.hook)}
    path.write_text(SMALL % values)
    pipeline = ExperimentPipeline(load_config(path, env={}).config)

    def wait(*_: Any) -> None:
        account = pipeline.life.account
        while account is None or any(
            g.delivered + g.missed < account.produced for g in account.groups
        ):
            time.sleep(0.0005)
            account = pipeline.life.account
        if stop_at is not None and pipeline.session.clock.host_step >= stop_at:
            pipeline.request_stop()

    try:
        pipeline.setup()
        model = pipeline._host._model  # type: ignore[union-attr]
        getattr(model, "policy", model).get_submodule(case.hook).register_forward_hook(wait)
        pipeline.run()
        outcome = pipeline.shutdown(preempted=True)
        assert outcome.orderly
        return outcome.run_dir.path
    finally:
        pipeline.close()


@pytest.mark.rest
@pytest.mark.parametrize("make_case", [ppo_case, language_case])
def test_a_run_that_was_stopped_and_goes_on_ends_bit_equal_to_one_that_was_not(tmp_path, make_case):
    case = make_case(tmp_path)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = drained_life(tmp_path / "whole", case)
    cut = drained_life(tmp_path / "cut", case, case.stops[0])
    sae = f"sae/{file_slug(case.hook)}/latest"
    between = load_file(cut / sae / "trainer_state.safetensors")
    assert drained_life(tmp_path / "cut", case, case.stops[1]) == cut
    assert drained_life(tmp_path / "cut", case) == cut
    entries = attempts_in(cut)
    assert [one["end"] for one in entries] == ["preempted", "preempted", "finished"]
    assert [one["first_step"] for one in entries] == case.first_steps
    assert [one["repeated_steps"] for one in entries] == [0, 0, 0]
    packets = [account["produced"] for account in accounts(cut)]
    assert sum(packets) == accounts(whole)[0]["produced"] == case.packets
    for file in ("host-state/latest/host.safetensors", f"{sae}/trainer_state.safetensors",
                 f"{sae}/sae_weights.safetensors"):  # fmt: skip
        ours, theirs = load_file(cut / file), load_file(whole / file)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        if file.startswith("host-state"):
            assert any(name.startswith("model.") for name in ours)
    numbers = [
        json.loads((run / sae / "trainer_state.json").read_text())["numbers"]
        for run in (cut, whole)
    ]
    assert numbers[0] == numbers[1]
    assert not torch.equal(between["buffer.rows"], ours.get("buffer.rows", torch.zeros(1)))


@pytest.mark.rest
def test_an_observed_loop_goes_on_with_its_run_and_its_saes(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))

    def life(start: int, steps: int) -> Path:
        with asys_bench.observe(
            model, hooks="0", sae={"d_sae": 32, "k": 4, "batch_rows": 64, "buffer_rows": 256},
            run={"dir": str(tmp_path), "resume": "auto", "drain_timeout_s": 60}, start_step=start, quiet=True,
            monitors={"log": {"options": {"tensorboard": False}}},
        ) as observation:  # fmt: skip
            for _ in range(steps):
                model(torch.randn(64, 8))
                observation.step()
        return observation.run_dir

    run_dir = life(0, 30)
    assert run_dir.name == "Sequential"
    first = open_run(run_dir).metrics("sae_rows")["value"][-1]
    assert life(20, 30) == run_dir  # its checkpoint was ten steps older
    run = open_run(run_dir)
    assert [one["repeated_steps"] for one in run.attempts] == [0, 10]
    accounts(run_dir)
    rows = run.archive.numpy("0", ("attempt", "host_step", "seq"))
    counted = {int(a): np.unique(rows["host_step"][rows["attempt"] == a]) for a in (0, 1)}
    assert (counted[0][0], counted[1][0]) == (0, 20)
    last = open_run(run_dir, repeats="last").archive.numpy("0", ("attempt", "host_step"))
    assert last["host_step"][last["attempt"] == 0].max() == 19
    assert run.metrics("sae_rows")["value"][-1] > first
    metrics = run.metrics("host_steps")
    assert list(metrics["time_s"]) == sorted(metrics["time_s"])
    assert set(metrics["attempt"]) == {"0", "1"}


STUBBORN = """
import time, torch
def build(seed):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    def train(clock):
        while True:  # it never looks at should_stop
            model(torch.randn(16, 8)); clock.step(); time.sleep(0.01)
    return model, train
"""


@pytest.mark.rest
def test_a_host_that_does_not_leave_its_loop_is_left_within_the_drain_time_after_sigterm(tmp_path):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    sets = (
        "host.kind=callable", "host.options.callable.function=stubborn:build", f"run.dir={tmp_path}",
        "run.id=job", "run.drain_timeout_s=6", f"storage.uri=file://{tmp_path}/copy", "hooks=[{match: '0'}]",
        "sinks.trainer.options.sae.k=4",
    )  # fmt: skip
    command = [
        sys.executable,
        "-P",
        "-m",
        "asys_bench.cli.run",
        "--config",
        "profile_consumer.yaml",
    ]
    for one in sets:
        command += ["--set", one]
    with open(tmp_path / "output", "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": str(tmp_path)}
        )
    try:
        run_dir = tmp_path / "job"
        archived = run_dir / "archive" / "0"
        deadline = time.monotonic() + 200
        while not any(archived.glob("*.arrows")):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 143
        assert time.monotonic() - asked >= 3, "it had half of the time to leave by itself"
    finally:
        process.kill()
        process.wait()
    (entry,) = attempts_in(run_dir)
    assert (entry["end"], entry["last_step"] > 0) == ("preempted", True)
    (account,) = accounts(run_dir)
    assert account["produced"] == account["groups"][0]["delivered"] > 0
    said = " ".join((tmp_path / "output").read_text().split())
    assert "the run ends without it" in said
    assert f"send it with: asys-run upload {run_dir}" in said
