"""On a GPU, SAEs train as on the CPU, and resume bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asys_bench.sae import ARCHITECTURES, SAETrainer, SparseKernels
from asys_bench.sae.training.device import CPU, CudaDevice
from asys_bench.sae.training.feed import StagedFeed

from ..unit.sae.step_by_step import config_of, from_one_state, learner_of, rows_for
from ..unit.sae.test_device import _config, _ingest, _saved


@pytest.fixture
def there():
    return CudaDevice(torch.cuda.current_device())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_from_one_state_agree_with_the_cpu(architecture, there):
    rows, config = rows_for(architecture), config_of(architecture)
    here = learner_of(config, rows, SparseKernels, device=CPU)
    found = from_one_state(here, learner_of(config, rows, device=there), rows, 200)
    assert (found.steps, found.loss < 1e-5, found.gradient < 1e-4, found.update < 1e-4) == (
        200, True, True, True,
    ), found  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_operation_is_one_that_torch_calls_nondeterministic(architecture, there):
    torch.use_deterministic_algorithms(True)
    try:
        trainer = SAETrainer(_config(architecture), device=there)
        _ingest(trainer, rows_for(architecture), 0, 6)
        assert trainer.steps > 10
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "skip_transcoder"])
def test_it_resumes_bit_for_bit(architecture, there, tmp_path: Path):
    rows, config = rows_for(architecture), _config(architecture)
    through = SAETrainer(config, device=there)
    _ingest(through, rows, 0, 10)
    stopped = SAETrainer(config, device=there)
    _ingest(stopped, rows, 0, 6)
    stopped.save(tmp_path / "checkpoints", sync=False)
    resumed = SAETrainer(config, device=there)
    assert resumed.load(tmp_path / "checkpoints") is not None
    _ingest(resumed, rows, 6, 4)
    one, other = _saved(through, tmp_path / "one"), _saved(resumed, tmp_path / "other")
    assert {n: v for n, v in one.items() if n != "cfg.json"} == {
        n: v for n, v in other.items() if n != "cfg.json"
    }
    feed = through._hook.feed
    assert isinstance(feed, StagedFeed)
    assert feed.brought_ahead > 0
