"""TRL's trainers with our callback: the same losses and weights to the last bit; GRPO's rewards at the rows
of its completions, and what it generates apart from what it trains on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asys_bench

pytest.importorskip("trl", reason="make test-trl")
pytestmark = [pytest.mark.rest, pytest.mark.timeout(600)]
TRAIN = Path(__file__).parent / "train.py"
HOOK = "transformer.h.1"
KEY = ("host_step", "microbatch", "row")


def train(kind: str, folder: Path, during: str, steps: int) -> dict[str, Any]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-P", str(TRAIN), kind, str(folder), during, str(steps)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_grpo_trains_the_same_and_every_row_has_the_reward_of_its_completion(
    tmp_path: Path,
) -> None:
    alone = train("grpo", tmp_path / "alone", "-", 20)
    told = train("grpo", tmp_path / "observed", "training", 20)
    assert told["losses"] == alone["losses"]
    assert len(told["losses"]) == 20
    assert told["weights"] == alone["weights"]

    archive = asys_bench.open_run(told["run"]).archive
    labels = ("label.completion", "label.reward_remainder", "label.reward_length")
    rows = archive.numpy(HOOK, (*KEY, *labels))
    tokens = archive.numpy("tokens", ("values", *KEY))
    for name in KEY:
        assert np.array_equal(rows[name], tokens[name])
    assert set(rows["host_step"]) == set(range(20))
    assert not np.isnan(rows["label.completion"]).any(), "no row of a generation"
    starts = np.flatnonzero(tokens["values"][:, 1] == 0)
    assert len(starts) == 20 * 4
    for first, end in zip(starts, [*starts[1:], len(rows["row"])], strict=True):
        own = rows["label.completion"][first:end] == 1
        assert own.any()
        assert not own[0], "a sequence begins with its prompt"
        ids = tokens["values"][first:end, 0][own]
        for label, value in (("remainder", float(ids.sum() % 5)), ("length", len(ids) / 10)):
            given = rows[f"label.reward_{label}"][first:end]
            assert np.allclose(given, value)


def test_what_is_generated_is_captured_when_asked_for_and_alone(tmp_path: Path) -> None:
    told = train("grpo", tmp_path / "observed", "generation", 3)
    archive = asys_bench.open_run(told["run"]).archive
    assert archive.labels == ()
    rows = archive.numpy(HOOK, KEY)
    assert set(rows["host_step"]) == {0, 1, 2}


def test_where_both_are_captured_a_label_says_which_rows_were_generated(tmp_path: Path) -> None:
    told = train("grpo", tmp_path / "observed", "all", 3)
    archive = asys_bench.open_run(told["run"]).archive
    rows = archive.numpy(HOOK, (*KEY, "label.generation", "label.completion"))
    generated = rows["label.generation"] == 1
    assert 0 < generated.sum() < len(generated)
    assert not np.isnan(rows["label.generation"]).any()
    assert np.isnan(rows["label.completion"][generated]).all()
    assert not np.isnan(rows["label.completion"][~generated]).any()
    assert set(rows["host_step"][generated]) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_other_trainers_train_the_same(tmp_path: Path, kind: str) -> None:
    alone = train(kind, tmp_path / "alone", "-", 5)
    told = train(kind, tmp_path / "observed", "training", 5)
    assert (told["losses"], told["weights"]) == (alone["losses"], alone["weights"])
    rows = asys_bench.open_run(told["run"]).archive.numpy(HOOK, KEY)
    assert set(rows["host_step"]) == set(range(5))
