"""Small runs as the archiver and a trainer write them, and a browser that has been let in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from asys_bench.eye.app import pages_app
from asys_bench.eye.eye import Eye
from asys_bench.eye.guard import Guard
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore

from ..reports import test_run_report as made

HOOK, D_IN, D_SAE = made.HOOK, made.D_IN, made.D_SAE
SILENT = 13
"""A feature that never fires."""
HOSTILE = "<img src=x onerror=alert(1)>"
TOKEN = "the-token"
ADDRESS = "http://127.0.0.1:8700"


def run_json(folder: Path, hooks: list[str], **more: Any) -> None:
    document = {
        "schema": "asys.run/1", "run_id": folder.name, "started_unix_ns": 1_700_000_000 * 10**9,
        "step_unit": "env step", "hooks": hooks, "host_pid": 1, "stats_page": "/proc/1/fd/3", **more,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))


@pytest.fixture(scope="session")
def text_rows() -> torch.Tensor:
    return torch.randn(60, D_IN, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory, text_rows: torch.Tensor) -> Path:
    """60 rows of a text, twenty a host step, with an SAE; token n is `w<n>`, but 7, which is markup."""
    folder = tmp_path_factory.mktemp("runs") / "text-run"
    folder.mkdir()
    run_json(folder, [HOOK])
    (folder / "config.yaml").write_text("host:\n  kind: transformers\n")
    sae = build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=2, seed=3), D_IN)
    with torch.no_grad():
        sae.W_enc[:, SILENT] = 0.0
    CheckpointStore(folder / "sae" / HOOK).write(
        10, lambda into: save_sae(into, sae, InputScaling.identity(D_IN), {})
    )
    sent = []
    for step in range(3):
        ids = torch.arange(20) + 20 * step
        pairs = torch.stack([ids, torch.arange(20)], 1).to(torch.int32)
        rows = text_rows[20 * step : 20 * step + 20]
        sent.append(made.packet(pairs, 2 * step, 3, host_step=step, text=1))
        sent.append(made.packet(rows, 2 * step + 1, 1, host_step=step, text=1))
    made.archive(folder, sent)
    pieces = [HOSTILE if n == 7 else f"\u0120w{n}" for n in range(60)]
    (folder / "vocabulary.json").write_text(json.dumps({"tokens": pieces}))
    made.metrics(folder).close()
    return folder


@pytest.fixture
def own_run(text_run: Path, tmp_path: Path) -> Path:
    """A copy, for tests that change it."""
    return Path(shutil.copytree(text_run, tmp_path / "runs" / text_run.name, symlinks=True))


def browser(run_dir: Path) -> Iterator[TestClient]:
    eye = Eye(run_dir, wait_s=60.0)
    eye.table(HOOK)
    client = TestClient(Guard(pages_app(eye), TOKEN), base_url=ADDRESS)
    assert client.get("/", params={"token": TOKEN}).status_code == 200
    yield client
    client.close()
    eye.close()


@pytest.fixture(scope="module")
def client(text_run: Path) -> Iterator[TestClient]:
    """Of a run that no test changes."""
    yield from browser(text_run)


@pytest.fixture
def own_client(own_run: Path) -> Iterator[TestClient]:
    yield from browser(own_run)
