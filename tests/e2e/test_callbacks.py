"""The examples: a script as it was, and the same with at most three lines more.

Both are run as a user would; every loss must be the same to the last bit, and the observed one must
have trained, archived and detached.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asys_bench

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PATIENCE_S = 240.0
PAIRS = {
    "pytorch": (("2",), "torch"),
    "sb3": (("mlp_extractor.policy_net", "mlp_extractor.value_net"), "stable_baselines3"),
    "transformers_trainer": (("transformer.h.1", "transformer.h.2"), "transformers"),
    "lightning_module": (("encoder", "decoder"), "lightning"),
}


def run_example(name, folder):
    """Its standard output's loss lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("loss")]


@pytest.mark.rest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PAIRS)
def test_at_most_three_lines_more_and_every_loss_the_same_to_the_bit(name, tmp_path):
    hooks, library = PAIRS[name]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    plain = (EXAMPLES / f"{name}.py").read_text().splitlines()
    observed = (EXAMPLES / f"{name}_observed.py").read_text().splitlines()
    changes = [line for line in difflib.ndiff(plain, observed) if line[0] in "+-"]
    assert not any(line[0] == "-" for line in changes), "the script itself is changed"
    assert 1 <= sum(1 for line in changes if line[1:].strip()) <= 3
    (tmp_path / "plain").mkdir()
    (tmp_path / "observed").mkdir()
    losses = run_example(name, tmp_path / "plain")
    assert len(losses) > 5
    assert run_example(f"{name}_observed", tmp_path / "observed") == losses
    run = asys_bench.open_run(tmp_path / "observed" / "runs")
    assert run.hooks == list(hooks)
    bus = run.summary["bus"]
    assert bus["produced"] > 0
    for group in bus["groups"]:
        assert (group["imbalance"], group["ready"]) == (0, 0)
    for hook in hooks:
        assert len(run.archive.numpy(hook, ("row",))["row"]) > 0
        assert run.metrics("sae_rows", hook=hook)["value"][-1] > 0
    assert run.summary["host"]["steps"] > 0
    assert run.summary["host"]["weights_version"] > 0
    assert run.metrics("worker_state")["value"][-1] >= 0
    assert not any((tmp_path / "plain").glob("runs"))
