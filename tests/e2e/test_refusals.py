"""Hosts under odd circumstances, and runs that are refused only once the model is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

PATIENCE_S = 240
DAEMON = """\
    import os, sys, torch
    import asys_bench

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    os.closerange(0, 3)
    observation = asys_bench.observe(
        model, hooks=["0"], run__dir=sys.argv[1], run__drain_timeout_s=60, bus__backend="cpp_spmc",
        sinks__trainer__enabled=False,
    )
    free = {"0", "1", "2"} - set(os.listdir("/proc/self/fd"))
    for _ in range(50):
        model(torch.randn(4, 8))
        observation.step()
    observation.close()
    good = observation.account.produced == 50 and observation.run.summary["warnings"] == []
    os._exit(0 if good and len(free) >= 2 else 9)  # listing a folder takes one of them
"""


@pytest.mark.rest
def test_a_daemon_without_standard_streams_and_with_a_deep_temporary_folder_is_observed(tmp_path):
    deep = tmp_path / ("d" * 110)
    deep.mkdir()
    script = tmp_path / "daemon.py"
    script.write_text(textwrap.dedent(DAEMON))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs")],
        env={**os.environ, "TMPDIR": str(deep)},
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0
    assert list(deep.iterdir()) == []


def run(tmp_path, text):
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"extends: profile_consumer.yaml\nrun: {{dir: {tmp_path / 'runs'}}}\n{text}\n"
    )
    return subprocess.run(
        [sys.executable, "-P", "-m", "asys_bench.cli.run", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.rest
def test_a_k_that_the_width_of_the_rows_shows_to_be_too_large_ends_the_run_in_its_first_step(
    tmp_path,
):
    pytest.importorskip("stable_baselines3")
    done = run(
        tmp_path,
        "sinks: {trainer: {options: {sae: {k: 2000, d_sae: null, expansion_factor: 8}}}}\n"
        "hooks: [{match: mlp_extractor.policy_net}]\n"
        "host: {options: {ppo: {n_envs: 8}}}",
    )
    assert done.returncode == 2, done.stderr
    said = (
        "SAE 'mlp_extractor.policy_net' cannot be trained: k 2000 is more than d_sae 512 (d_in 64)"
    )
    assert f"asys-run: {tmp_path / 'mine.yaml'}:3:" in done.stderr
    assert said in done.stderr
    (path,) = (tmp_path / "runs").glob("*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["outcome"] == "failed"
    assert summary["host"]["steps"] == 8  # one step of each of the eight environments
    assert said in summary["warnings"][0]


@pytest.mark.rest
def test_a_glob_that_matches_no_module_is_told_with_its_line(tmp_path):
    pytest.importorskip("stable_baselines3")
    done = run(tmp_path, 'hooks:\n  - match: ["mlp_extractor.policy_net", "mlp_extractr.*"]')
    assert done.returncode == 2
    assert f"asys-run: {tmp_path / 'mine.yaml'}:4:" in done.stderr
    assert "'mlp_extractr.*' matches no module" in done.stderr
