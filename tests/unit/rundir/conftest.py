"""A small run with one of everything that a run writes, whole until a test damages it."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from asys_bench.contracts.stats import RunState
from asys_bench.monitors.metrics_csv import COLUMNS
from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.system.process import start_time

ARCHIVER = Path(__file__).parent.parent / "sinks" / "archive" / "conftest.py"


def train(folder: Path, saves: int = 2) -> SAETrainer:
    """`saves` checkpoints of a tiny SAE."""
    trainer = SAETrainer(SAEConfig(d_sae=24, k=3, batch_rows=32, buffer_rows=64, held_out_rows=64))
    trainer.ingest(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), (0, 0, 0))
    for _ in range(saves):
        trainer.train(max_steps=2, wait_for_fill=False)
        trainer.save(folder, sync=False)
    return trainer


def write_documents(folder: Path, *, live: bool = False) -> None:
    document = {
        "schema": "asys.run/1", "run_id": "run-1", "hooks": ["policy.mlp"], "host_pid": os.getpid(),
        "host_start": start_time(os.getpid()), "started_unix_ns": 1,
        "result": None if live else {"steps": 1},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "config.yaml").write_text("schema: asys.config/1\n")
    row = ["1.0", "2026-01-01", "host", "m", "", "", "", "", "now", "value", "1", "0"]
    assert len(row) == len(COLUMNS)
    (folder / "metrics.csv").write_text(",".join(COLUMNS) + "\n" + (",".join(row) + "\n") * 3)
    (folder / "monitor.log").write_text('{"event": "run_opened", "time": "x"}\n' * 2)


class SmallRun:
    """The folder, and the rig that its archive was written with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rig: Any = runpy.run_path(str(ARCHIVER))["Rig"](path)
        self.archiver = self.rig.start()
        for seq in range(4):
            self.feed(self.archiver, seq)

    def feed(self, worker: Any, seq: int, hook: int = 1) -> None:
        self.rig.feed(worker, self.rig.packet(torch.full((5, 6), float(seq)), seq, hook))

    @property
    def shard(self) -> Path:
        found: Path = self.rig.shards()[0]
        return found


@pytest.fixture
def run(tmp_path: Path) -> Any:
    path = tmp_path / "run-1"
    path.mkdir()
    made = SmallRun(path)
    made.archiver.close()
    write_documents(path)
    train(path / "sae" / "policy.mlp")
    board = SummaryWriter(str(path / "tensorboard"))
    for step in range(3):
        board.add_scalar("a", 1.0, step)
    board.close()
    (path / "logs").mkdir()
    (path / "logs" / "archive-0.log").write_text("")
    yield made
    made.rig.page.run_state = RunState.STOPPED
    made.rig.page.close()
