"""What the SAEs learn in a few seconds on data whose structure is known."""

import pytest
import torch

from asys_bench.sae import SAEConfig, SAEMetrics, SAETrainer
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.evaluation import SyntheticFeatures, recovery
from asys_bench.sae.training.learner import Learner


def _train(config: SAEConfig, rows_ND: torch.Tensor) -> tuple[SAETrainer, SAEMetrics]:
    trainer = SAETrainer(config)
    for seq, chunk_ND in enumerate(rows_ND.split(500)):
        trainer.ingest(chunk_ND, (0, 0, seq))
        trainer.train()
    trainer.train(wait_for_fill=False)
    measured = trainer.evaluate()
    assert measured is not None
    return trainer, measured


def _dictionary_rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """64 unit features in 32 dimensions, about 3 active per row, off-centre."""
    generator = torch.Generator().manual_seed(5)
    features_FD = torch.randn(64, 32, generator=generator)
    features_FD /= features_FD.norm(dim=1, keepdim=True)
    active = torch.rand(count, 64, generator=generator) < 3 / 64
    acts_NF = active * (0.5 + torch.rand(count, 64, generator=generator))
    return acts_NF @ features_FD + 0.3, features_FD


def _policy_rows(count: int) -> torch.Tensor:
    """Second tanh layer of a 64-unit policy on a 4-dimensional observation."""
    generator = torch.Generator().manual_seed(11)
    W1, W2 = (
        0.8 * torch.randn(4, 64, generator=generator),
        torch.randn(64, 64, generator=generator) / 4,
    )
    b1, b2 = (0.3 * torch.randn(64, generator=generator) for _ in range(2))
    scale = torch.tensor([1.0, 0.6, 0.2, 0.8])
    observed = torch.randn(count, 4, generator=generator) * scale
    return torch.tanh(torch.tanh(observed @ W1 + b1) @ W2 + b2)


def test_topk_reconstructs_a_known_dictionary_and_finds_its_features() -> None:
    rows_ND, features_FD = _dictionary_rows(40_000)
    config = SAEConfig(
        d_sae=128, k=4, batch_rows=512, buffer_rows=8192, passes=6, dead_after_rows=20_000
    )
    trainer, measured = _train(config, rows_ND)
    assert measured.fvu < 0.2
    assert measured.l0 <= 4
    assert trainer.sae is not None
    decoder_FD = torch.nn.functional.normalize(trainer.sae.W_dec.detach(), dim=1)
    best = (features_FD @ decoder_FD.t()).max(1).values
    assert best.mean() > 0.85


@pytest.mark.rest
@pytest.mark.parametrize("k", [8, 16])
def test_topk_explains_a_small_policys_tanh_units(k: int) -> None:
    _, measured = _train(SAEConfig(k=k), _policy_rows(30_000))
    assert measured.fvu < 0.05
    assert measured.l0 <= k
    assert measured.cosine > 0.97


@pytest.mark.rest
def test_a_layer_that_saturates_within_seconds_is_followed() -> None:
    """As a PPO value network did: units go to +-1 and the variance falls by 60,000."""
    before_ND = _policy_rows(100_000)
    saturated_D = torch.sign(torch.randn(64, generator=torch.Generator().manual_seed(5)))
    after_ND = saturated_D * (1 - 0.004 * (before_ND + 1))
    config = SAEConfig(k=16, buffer_rows=8192, normalizer_window_rows=16384)
    trainer, _ = _train(config, before_ND)
    for index, chunk in enumerate(torch.cat([after_ND] * 2).split(256)):
        trainer.ingest(chunk, (0, 0, 10**6 + index))
        trainer.train()
    measured = trainer.evaluate()
    assert measured is not None
    assert measured.fvu < 0.1


def _recovered(config: SAEConfig, rows: int) -> tuple[float, float]:
    """(FVU held out, mean max cosine with the truth) after one pass over synthetic rows."""
    truth = SyntheticFeatures(features=128, d_in=64, mean_l0=4.0, seed=0)
    trainer = SAETrainer(config)
    for seq in range(rows // 1024):
        trainer.ingest(truth.rows(1024, stream=2 + seq), (0, 0, seq))
        trainer.train()
    trainer.train(wait_for_fill=False)
    sae, held_out_ND = trainer.sae, truth.rows(4096, stream=1)
    assert sae is not None
    error = (sae(held_out_ND) - held_out_ND).detach().square().sum()
    fvu = float(error / (held_out_ND - held_out_ND.mean(0)).square().sum())
    return fvu, recovery(truth.directions_GD, sae.W_dec.detach()).mmcs


@pytest.mark.rest
def test_features_that_begin_at_rows_find_the_truth_sooner_than_random_ones() -> None:
    base = {"d_sae": 256, "k": 4, "passes": 1, "held_out_fraction": 0.0, "buffer_rows": 8192}
    found = {
        start: _recovered(SAEConfig.model_validate({**base, "start": start}), 40_000)
        for start in ("rows", "random")
    }
    assert found["rows"][0] < found["random"][0]
    assert found["rows"][1] > max(0.8, found["random"][1])


@pytest.mark.rest
def test_relu_reaches_the_configured_l0_on_a_small_policys_tanh_units() -> None:
    config = SAEConfig(architecture="relu", target_l0=12)
    _, measured = _train(config, _policy_rows(100_000))
    assert measured.fvu < 0.1
    assert measured.l0 == pytest.approx(12, rel=0.2)


def _error_after_killing_features(dead_policy: str) -> tuple[float, float]:
    rows_ND, _ = _dictionary_rows(256 * 200)
    learner = Learner(
        SAEConfig.model_validate(
            {"d_sae": 128, "k": 4, "dead_policy": dead_policy, "dead_after_rows": 5_000}
        ),
        32,
    )
    learner.start(rows_ND, InputScaling(3.0, torch.zeros(32)))
    with torch.no_grad():
        learner.sae.b_enc[:96] = -3.0
    learner.dead.silent_rows_F[:96] = 10**6
    learner.dead.revive(torch.zeros(0, dtype=torch.int64))
    errors = []
    for batch_BD in rows_ND.split(256):
        result = learner.step(batch_BD, torch.ones(len(batch_BD)))
        assert result is not None
        errors.append(result.error)
    return sum(errors[-10:]) / 10, learner.dead_fraction


@pytest.mark.parametrize("policy", ["auxk", "resample"])
def test_dead_features_are_brought_back_to_use(policy: str) -> None:
    error_with, dead_with = _error_after_killing_features(policy)
    error_without, dead_without = _error_after_killing_features("none")
    assert dead_with < 0.8 * dead_without
    assert error_with < error_without
