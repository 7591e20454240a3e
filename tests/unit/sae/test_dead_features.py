"""Counting, reviving and resampling of dead features, and the L1 controller."""

import itertools

import pytest
import torch

from asys_bench.sae import SAEConfig
from asys_bench.sae.training.dead_features import (
    ENCODER_RATIO,
    DeadFeatures,
    resample_,
    round_after,
)
from asys_bench.sae.training.learner import Learner
from asys_bench.sae.training.schedule import SparsityController


def test_a_feature_is_dead_after_its_window_of_silence() -> None:
    dead = DeadFeatures(3, dead_after_rows=100)
    for _ in range(3):
        dead.update(torch.tensor([5, 0, 1]), rows=50)
    assert dead.indices().tolist() == [1]
    assert dead.count == 1
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


def _resampled(learner: Learner, x_BD: torch.Tensor, error_B: torch.Tensor) -> int:
    generator = torch.Generator().manual_seed(0)
    index_M, count = resample_(
        learner.sae, learner.adam, learner.dead, x_BD, x_BD, error_B, generator, learner.sae
    )
    assert len(index_M) == count
    return count


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_resampling_points_dead_features_at_what_is_missing_in_bad_rows(architecture: str) -> None:
    learner = _learner(architecture=architecture)
    dead_N = torch.tensor([3, 9])
    _kill(learner, dead_N)
    x_BD = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    error_B = torch.zeros(32)
    error_B[[4, 5]] = 1.0
    missing = torch.nn.functional.normalize(
        x_BD[[4, 5]] - learner.sae(x_BD[[4, 5]]).detach(), dim=1
    )
    for mean, _ in learner.adam.moments.values():
        mean.fill_(1.0)
    assert _resampled(learner, x_BD, error_B) == 2
    assert learner.dead.count == 0
    similarity = learner.sae.W_dec.detach()[dead_N] @ missing.t()
    assert similarity.max(1).values.min() > 0.9999
    assert similarity.argmax(1).unique().numel() == 2
    encoder_ND = learner.sae.W_enc.detach().t()[dead_N]
    living = learner.sae.W_enc.detach().norm(dim=0)[[0, 1, 2]].mean()
    torch.testing.assert_close(encoder_ND.norm(dim=1), (ENCODER_RATIO * living).expand(2))
    # The bias that made them dead is gone: a typical living one has taken its place.
    usual = float(learner.sae.encoder_bias.detach()[[0, 1, 2]].median())
    assert learner.sae.encoder_bias.tolist()[3] == pytest.approx(ENCODER_RATIO * usual)
    moment, _ = learner.adam.moments["W_enc"]
    assert moment[:, dead_N].abs().max() == 0
    assert moment[:, 0].min() == 1


def test_resampling_without_any_loss_does_nothing() -> None:
    learner = _learner(architecture="relu")
    _kill(learner, torch.tensor([1]))
    assert _resampled(learner, torch.ones(4, 16), torch.zeros(4)) == 0
    assert learner.dead.count == 1


@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu", "gated"])
def test_a_trainer_resamples_on_its_own(architecture: str) -> None:
    learner = _learner(architecture=architecture, resample_every_steps=2, dead_after_rows=10)
    _kill(learner, torch.arange(8))
    x_BD = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        learner.step(x_BD, torch.ones(64))
    assert learner.features_resampled == 2  # 1/32 of 64 a round
    for _ in range(14):
        learner.step(x_BD, torch.ones(64))
    assert learner.features_resampled >= 8
    assert learner.sae.encoder_bias.min() > -10


def test_rounds_of_resampling_come_further_and_further_apart() -> None:
    rounds = [0]
    while rounds[-1] < 20_000:
        rounds.append(round_after(rounds[-1], longest_gap=500))
    gaps = [after - before for before, after in itertools.pairwise(rounds)]
    assert gaps[:3] == [10, 10, 10]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 500
    # Where a resumed run finds itself makes no difference.
    assert round_after(rounds[7] + 3, 500) == rounds[8]


def test_no_feature_starts_anew_at_the_end_of_a_run_of_known_length() -> None:
    learner = _learner(dead_after_rows=10, total_steps=20, resample_every_steps=4)
    x_BD = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    counts = []
    for _ in range(20):
        _kill(learner, torch.arange(8))
        learner.step(x_BD, torch.ones(64))
        counts.append(learner.features_resampled)
    assert counts[15] > 0
    assert counts[15] == counts[-1]


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
