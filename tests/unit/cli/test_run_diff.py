"""`asys-run diff`: what it says where a hook cannot be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows
from asys_bench.change.reservoir.windows import WindowedSample
from asys_bench.cli import run
from asys_bench.sae import CheckpointStore

HOOK = "mid"


@pytest.fixture
def folder(tmp_path):
    """A run with a reservoir of one hook."""
    document = {"schema": "asys.run/1", "run_id": "r", "hooks": [HOOK], "host_pid": 1}
    (tmp_path / "run.json").write_text(json.dumps(document))
    about = np.zeros(4, ABOUT)
    about["weight"], about["rank"] = 1.0, np.arange(4)
    sample = WindowedSample(8, tmp_path / "reservoir" / HOOK, tmp_path)
    sample.add(0, ReservoirRows(torch.zeros(4, 3, dtype=torch.float16), about))
    sample.flush()
    return tmp_path


def test_a_damaged_checkpoint_is_named_and_ends_the_command_with_2(folder, capsys):
    store = CheckpointStore(folder / "sae" / HOOK)
    store.write(1, lambda path: (path / "cfg.json").write_text("{"))
    assert run.main(["diff", str(folder), str(folder)]) == 2
    said = capsys.readouterr()
    assert f"{HOOK}: {folder}" in said.out.replace("\n", "")
    assert "step_000000001" in said.out
    assert "no hook of" in said.err


def test_a_run_whose_file_is_damaged_ends_the_command_with_2(folder, capsys):
    (folder / "run.json").write_text("{")
    assert run.main(["diff", str(folder), str(folder)]) == 2
    assert "run.json cannot be read" in capsys.readouterr().err
