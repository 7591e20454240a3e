"""The NaN guard: a step that fails changes nothing, and a state that fails is left for a good one."""

import logging
import math
from pathlib import Path

import pytest
import torch

from asys_bench.sae import AUTOENCODERS, SAEConfig, SAETrainer
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.config import PENALISED
from asys_bench.sae.training.learner import Learner

D = 16


def _learner(architecture: str, **fields: object) -> Learner:
    base: dict[str, object] = {"architecture": architecture, "d_sae": 64, "k": 4}
    if architecture in PENALISED:
        base["target_l0"] = 4
    learner = Learner(SAEConfig.model_validate(base | fields), D)
    learner.start(_rows(0, 512), InputScaling(1.0, torch.zeros(D)))
    return learner


def _rows(seed: int, count: int = 64) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def _state(learner: Learner) -> dict[str, torch.Tensor]:
    tensors = {name: t.clone() for name, t in learner.sae.state_dict().items()}
    for name, (mean, square) in learner.adam.moments.items():
        tensors[f"{name}.mean"], tensors[f"{name}.square"] = mean.clone(), square.clone()
    return tensors


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_steps_that_keep_failing_go_back_to_the_last_good_state(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    learner = _learner(architecture, good_state_steps=4, rollback_after_skips=3)
    for seed in range(6):
        if seed == 4:
            good = _state(learner)
        assert learner.step(_rows(seed), torch.ones(64)) is not None
    with torch.no_grad():
        learner.sae.W_enc[0, 0] = math.nan  # as a cosmic ray would
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            assert learner.step(_rows(seed), torch.ones(64)) is None
    assert learner.rollbacks == 1
    assert learner.steps_skipped == 3
    assert "back to the state of Adam step 4" in caplog.text
    for name, tensor in _state(learner).items():
        assert torch.equal(tensor, good[name]), name
    assert learner.step(_rows(9), torch.ones(64)) is not None
    assert learner.steps == 7


def test_an_update_that_makes_a_weight_infinite_goes_back_at_once() -> None:
    learner = _learner("topk", good_state_steps=1)
    learner.step(_rows(0), torch.ones(64))
    good = _state(learner)
    mean, _ = learner.adam.moments["b_dec"]
    mean[3] = 3e38
    assert learner.step(_rows(1), torch.ones(64)) is None
    assert learner.rollbacks == 1
    assert torch.isfinite(torch.cat([t.flatten() for t in _state(learner).values()])).all()
    assert torch.equal(learner.sae.W_dec, good["W_dec"])


def test_after_a_rollback_checkpoints_are_finite_and_resume(tmp_path: Path) -> None:
    config = SAEConfig(d_sae=64, k=4, batch_rows=64, buffer_rows=512, held_out_fraction=0.0)
    trainer = SAETrainer(config)
    trainer.ingest(_rows(0, 2000), (0, 0, 0))
    trainer.train(max_steps=6)
    trainer.save(tmp_path)
    assert trainer._hook is not None
    learner = trainer._hook.learner
    with torch.no_grad():
        learner.sae.W_dec.fill_(math.nan)
    before = trainer.metrics.rollbacks
    trainer.train(max_steps=4)
    assert trainer.metrics.rollbacks == before + 1
    folder = trainer.save(tmp_path)
    assert folder is not None
    again = SAETrainer(config)
    assert again.load(tmp_path) == folder
    assert again.metrics.rollbacks == 1
