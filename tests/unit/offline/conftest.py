"""Archives of made-up runs, written by the real archiver."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asys_bench.sinks.archive import Archive, open_archive

ARCHIVER = Path(__file__).parent.parent / "sinks" / "archive" / "conftest.py"
WIDTH = 12


def data(rows: int) -> torch.Tensor:
    """Sparse sums of six directions, far from the origin, with a little noise."""
    truth = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(0)
    acts = torch.relu(torch.randn(rows, 6, generator=generator) - 0.8)
    return acts @ truth * 30 + 100 + 0.1 * torch.randn(rows, WIDTH, generator=generator)


def write_run(run_dir: Path, rows: int = 12_000, hooks: tuple[int, ...] = (1,)) -> Path:
    """A run directory whose archive has `rows` rows per hook, in packets of 7 (rate 0.5).

    Packet i of every hook is of one moment, as one forward pass makes them.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    rig = runpy.run_path(str(ARCHIVER))["Rig"](run_dir)
    worker = rig.start()
    packets = [
        rig.packet(part, step * len(hooks) + place, hook, host_step=step, call_index=0)
        for step, part in enumerate(data(rows).split(7))
        for place, hook in enumerate(hooks)
    ]
    for first in range(0, len(packets), 256):
        rig.feed(worker, *packets[first : first + 256])
    worker.close()
    rig.page.close()
    return run_dir


@pytest.fixture
def rig_class() -> Any:
    return runpy.run_path(str(ARCHIVER))["Rig"]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "run", **more: Any) -> Path:
        return write_run(tmp_path / name, **more)

    return make


@pytest.fixture
def archive(make_run: Callable[..., Path]) -> Archive:
    return open_archive(make_run())


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
