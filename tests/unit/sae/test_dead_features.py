"""Counting, reviving and resampling of dead features, and the L1 controller."""

import pytest
import torch

from asys_bench.sae import SAEConfig
from asys_bench.sae.dead_features import DeadFeatures
from asys_bench.sae.learner import Learner
from asys_bench.sae.resampling import resample_
from asys_bench.sae.sparsity_controller import SparsityController


def test_a_feature_is_dead_after_its_window_of_silence() -> None:
    dead = DeadFeatures(3, dead_after_rows=100)
    for _ in range(3):
        dead.update(torch.tensor([5, 0, 1]), rows=50)
    assert dead.indices().tolist() == [1]
    assert dead.fraction == pytest.approx(1 / 3)
    dead.update(torch.tensor([0, 1, 0]), rows=50)
    assert dead.count == 0


def _learner(**fields: object) -> Learner:
    config = SAEConfig.model_validate({"d_sae": 64, "k": 4, "lr_warmup_steps": 0, **fields})
    return Learner(config, 16)


def _kill(learner: Learner, index_N: torch.Tensor) -> None:
    with torch.no_grad():
        learner.sae.encoder_bias[index_N] = -50.0
    learner.dead.silent_rows_F[index_N] = 10**6
    learner.dead.revive(torch.zeros(0, dtype=torch.int64))


def test_auxk_gives_dead_features_a_gradient_while_others_reconstruct() -> None:
    learner = _learner()
    dead_N = torch.arange(32)
    with torch.no_grad():
        learner.sae.encoder_bias[dead_N] = -1.0
    learner.dead.silent_rows_F[dead_N] = 10**6
    learner.dead.revive(torch.zeros(0, dtype=torch.int64))
    before_ND = learner.sae.W_dec.detach()[dead_N].clone()
    x_BD = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    learner.step(x_BD, torch.ones(256))
    assert (learner.sae.W_dec[dead_N] != before_ND).any(1).sum() > 16


def test_resampling_points_dead_features_at_badly_reconstructed_rows() -> None:
    learner = _learner(architecture="relu")
    dead_N = torch.tensor([3, 9])
    _kill(learner, dead_N)
    x_BD = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    error_B = torch.zeros(32)
    error_B[[4, 5]] = 1.0
    for mean, _ in learner.adam.moments.values():
        mean.fill_(1.0)
    generator = torch.Generator().manual_seed(0)
    revived = resample_(learner.sae, learner.adam, dead_N, x_BD, error_B, generator)
    assert sorted(revived.tolist()) == [3, 9]
    targets = x_BD[[4, 5]] / x_BD[[4, 5]].norm(dim=1, keepdim=True)
    similarity = learner.sae.W_dec.detach()[dead_N] @ targets.t()
    assert similarity.max(1).values.min() > 0.9999
    assert learner.sae.encoder_bias.detach()[dead_N].tolist() == [0.0, 0.0]
    moment, _ = learner.adam.moments["W_enc"]
    assert moment[:, dead_N].abs().max() == 0
    assert moment[:, 0].min() == 1


def test_resampling_without_any_loss_does_nothing() -> None:
    learner = _learner(architecture="relu")
    generator = torch.Generator().manual_seed(0)
    none = resample_(
        learner.sae,
        learner.adam,
        torch.tensor([1]),
        torch.ones(4, 16),
        torch.zeros(4),
        generator,
    )
    assert len(none) == 0


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_a_trainer_resamples_on_its_own(architecture: str) -> None:
    learner = _learner(architecture=architecture, resample_every_steps=2, dead_after_rows=10)
    _kill(learner, torch.arange(8))
    x_BD = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        learner.step(x_BD, torch.ones(64))
    assert learner.features_resampled >= 8
    assert learner.sae.encoder_bias.min() > -1


def test_the_controller_finds_the_weight_of_a_power_law() -> None:
    control = SparsityController(
        SAEConfig(architecture="relu", target_l0=20, l1_coefficient=0.1, sparsity_warmup_steps=10)
    )
    assert control.coefficient(0) == pytest.approx(0.01)
    for step in range(2000):
        control.observe(step, l0=30 * control.coefficient(step) ** -0.7)
    assert 30 * control.coefficient(2000) ** -0.7 == pytest.approx(20, rel=0.02)


def test_the_controller_stays_bounded_when_nothing_fires() -> None:
    control = SparsityController(SAEConfig(architecture="relu", target_l0=20))
    for step in range(5000):
        control.observe(step, l0=0.0)
    assert 0 < control.coefficient(5000) <= 1e-3
