"""What the trainer knows about a stream that changes: windows, drift, mixing, age, survival."""

import math

import pytest
import torch

from asys_bench.sae import SAEConfig, SAETrainer
from asys_bench.sae.training.normalizer import Normalizer
from asys_bench.sae.training.running_metrics import (
    FVUWindow,
    MixingMeter,
    feature_survival,
    matched_cosine,
    order_autocorrelation,
)

D = 16


def _rows(seed: int, count: int = 500) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def test_order_autocorrelation_tells_time_order_from_a_shuffle() -> None:
    steps = torch.arange(1000)
    assert order_autocorrelation(steps) > 0.99
    shuffled = steps[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    assert abs(order_autocorrelation(shuffled)) < 4 / math.sqrt(1000)
    assert order_autocorrelation(torch.tensor([0, 9] * 500)) < -0.99
    assert math.isnan(order_autocorrelation(torch.ones(50)))
    assert math.isnan(order_autocorrelation(torch.tensor([1, 2])))


def test_the_reservoir_mixes_and_a_small_one_mixes_less() -> None:
    measured = {}
    for buffer_rows in (256, 4096):
        config = SAEConfig(
            d_sae=32, k=2, batch_rows=256, buffer_rows=buffer_rows, passes=1, held_out_fraction=0.0
        )
        trainer = SAETrainer(config)
        for seq in range(80):
            trainer.ingest(_rows(seq, 128), (0, 0, seq), host_step=seq, weights_version=seq)
            trainer.train()
        measured[buffer_rows] = trainer.metrics
    assert abs(measured[4096].mixing_autocorrelation) < 0.2
    assert measured[4096].row_age_versions > 4 * measured[256].row_age_versions


def test_rows_beyond_the_age_limit_are_never_trained_on() -> None:
    config = SAEConfig(
        d_sae=32, k=2, batch_rows=64, buffer_rows=4096, max_row_age_versions=3,
        held_out_fraction=0.0, min_buffer_fill_ratio=0.0, passes=0.5,
    )  # fmt: skip
    trainer = SAETrainer(config)
    for seq in range(60):
        trainer.ingest(_rows(seq, 128), (0, 0, seq), weights_version=seq)
        trainer.train()
        if trainer.steps:
            assert trainer.metrics.row_age_versions <= 3
    assert trainer.steps > 20


def test_without_enough_young_rows_training_waits() -> None:
    config = SAEConfig(
        d_sae=32, k=2, batch_rows=64, buffer_rows=512, max_row_age_versions=0, held_out_fraction=0.0
    )
    trainer = SAETrainer(config)
    trainer.ingest(_rows(0, 512), (0, 0, 0), weights_version=0)
    trainer.ingest(_rows(1, 8), (0, 0, 1), weights_version=5)
    assert trainer.train() == 0


def test_age_and_mixing_are_running_means() -> None:
    meter = MixingMeter()
    meter.observe(torch.arange(10), torch.full((10,), 3), newest_version=5)
    assert meter.age_versions == 2
    assert meter.autocorrelation > 0.5
    restored = MixingMeter()
    restored.load_state_dict(meter.state_dict())
    assert vars(restored) == vars(meter)


def test_a_windows_fvu_is_that_of_its_rows_alone() -> None:
    window = FVUWindow(rows=100)
    assert not window.add(60, error=1.0, variance=2.0)
    assert math.isnan(window.last)
    assert window.add(60, error=4.0, variance=2.0)
    assert window.last == pytest.approx((60 * 1 + 60 * 4) / (120 * 2))
    assert window.add(200, error=0.5, variance=1.0)
    assert window.last == pytest.approx(0.5)
    assert window.count == 2


def test_the_trainer_reports_windows_and_drift() -> None:
    config = SAEConfig(
        d_sae=32, k=4, batch_rows=128, buffer_rows=1024, window_rows=800, held_out_fraction=0.0,
        normalizer_window_rows=8000, passes=1,
    )  # fmt: skip
    trainer = SAETrainer(config)
    for seq in range(40):
        trainer.ingest(_rows(seq), (0, 0, seq))
        trainer.train()
    still = trainer.metrics
    assert still.windows >= 20
    assert 0 < still.window_fvu < 1
    assert still.input_drift < 0.2
    for seq in range(40, 50):
        trainer.ingest(_rows(seq) + 3.0, (0, 0, seq))
        trainer.train()
    assert trainer.metrics.input_drift > 3 * still.input_drift


def test_drift_is_the_shift_between_the_halves_of_the_window() -> None:
    normalizer = Normalizer(D, "std", 64_000)
    assert normalizer.drift == 0.0
    for seed in range(64):
        shift = 0.0 if seed < 32 else 2.0
        normalizer.update(_rows(seed, 1000) + shift, torch.ones(1000))
    distance = 2.0 * math.sqrt(D)
    assert normalizer.drift == pytest.approx(distance / math.sqrt(D + distance**2 / 4), rel=0.02)


def test_survival_matches_features_by_direction_wherever_they_are() -> None:
    before_FD = torch.nn.functional.normalize(_rows(0, 40), dim=1)
    shuffled_FD = before_FD[torch.randperm(40, generator=torch.Generator().manual_seed(1))] * 3.0
    assert feature_survival(before_FD, shuffled_FD, 0.9) == 1.0
    half_FD = torch.cat([before_FD[:20], -before_FD[20:]])
    assert 0.5 <= feature_survival(before_FD, half_FD, 0.99) < 0.6
    torch.testing.assert_close(matched_cosine(before_FD, shuffled_FD), torch.ones(40))


def test_of_a_large_dictionary_a_part_is_looked_up() -> None:
    before_FD = _rows(0, 5000)
    assert len(matched_cosine(before_FD, before_FD[:100])) == 4096


def test_checkpoints_report_how_many_features_the_last_one_shares(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from asys_bench.sae import load_sae

    config = SAEConfig(d_sae=32, k=4, batch_rows=128, buffer_rows=1024, held_out_fraction=0.0)
    trainer = SAETrainer(config)
    trainer.ingest(_rows(0, 2000), (0, 0, 0))
    trainer.train(max_steps=2)
    trainer.save(tmp_path)
    assert math.isnan(trainer.metrics.feature_survival)
    trainer.save(tmp_path)
    assert trainer.metrics.feature_survival == 1.0
    again = SAETrainer(config)
    again.load(tmp_path)
    assert again._hook is not None
    with torch.no_grad():
        again._hook.learner.sae.W_dec[:16] *= -1
    folder = again.save(tmp_path)
    assert folder is not None
    assert 0.5 <= again.metrics.feature_survival < 0.8
    assert load_sae(folder)[1]["feature_survival"] == again.metrics.feature_survival
