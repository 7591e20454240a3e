"""The config's limits and derived values."""

import pytest
from pydantic import ValidationError

from asys_bench.sae import SAEConfig
from asys_bench.sae.training.schedule import peak_rate, rate_at


def test_every_field_is_described() -> None:
    for name, field in SAEConfig.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_rows": 100, "buffer_rows": 50}, "buffer_rows 50 is less than batch_rows 100"),
        ({"k": 20, "d_sae": 10}, "k 20 is more than d_sae 10"),
        ({"architecture": "relu", "dead_policy": "auxk"}, "valid here: auto, resample, none"),
        ({"architecture": "gated", "dead_policy": "auxk"}, "needs one of topk, batchtopk"),
        ({"target_l0": 5}, "target_l0 steers the penalty of relu, jumprelu, gated"),
        ({"architecture": "batchtopk", "k": 20, "d_sae": 10}, "k 20 is more than d_sae 10"),
        ({"matryoshka_widths": [8, 16]}, "needs matryoshka, not 'topk'"),
        (
            {"architecture": "matryoshka", "d_sae": 32, "matryoshka_widths": [8, 16]},
            r"\[8, 16\] must ascend from at least 1 to d_sae 32",
        ),
        ({"architecture": "skip_transcoder", "normalize": "norm"}, "use std or none"),
        ({"nonsense": 1}, "Extra inputs"),
        ({"passes": 0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SAEConfig.model_validate(fields)


def test_matryoshka_widths_are_powers_of_two_of_the_dictionary_unless_given() -> None:
    config = SAEConfig(architecture="matryoshka", k=4)
    assert config.prefix_widths(2048) == (128, 256, 512, 1024, 2048)
    assert config.prefix_widths(5) == (1, 2, 5)
    given = SAEConfig(architecture="matryoshka", k=4, d_sae=32, matryoshka_widths=(8, 32))
    assert given.prefix_widths(32) == (8, 32)


def test_what_sparsity_is_asked_for() -> None:
    assert SAEConfig(k=7).wanted_l0 == 7
    assert SAEConfig(architecture="gated", target_l0=9).wanted_l0 == 9
    assert SAEConfig(architecture="relu").wanted_l0 is None


def test_features_come_from_the_expansion_factor_unless_given() -> None:
    assert SAEConfig().features(64) == 512
    assert SAEConfig(d_sae=100).features(64) == 100
    with pytest.raises(ValueError, match="k 16 is more than d_sae 8"):
        SAEConfig(expansion_factor=2).features(4)


def test_learning_rate_warms_up_then_decays_to_its_floor() -> None:
    config = SAEConfig(learning_rate=0.1, lr_warmup_steps=10, lr_half_steps=25, lr_min_ratio=0.2)
    rates = [rate_at(config, 512, step) for step in range(2000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.1)
    assert rates[10 + 75] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.02)


def test_default_learning_rate_falls_with_the_square_root_of_the_features_and_of_small_batches() -> (
    None
):
    large = SAEConfig(batch_rows=4096)
    assert peak_rate(large, 2048) == pytest.approx(1.2e-2)
    assert peak_rate(large, 1 << 15) == pytest.approx(3e-3)
    assert peak_rate(SAEConfig(batch_rows=1024), 2048) == pytest.approx(1.2e-2 / 2**0.5)
    assert peak_rate(SAEConfig(batch_rows=8192, buffer_rows=8192), 2048) == pytest.approx(1.2e-2)
    assert peak_rate(large, 16) == pytest.approx(2.4e-2)


def test_the_rate_of_a_stream_falls_as_the_square_root_of_its_length_to_a_floor() -> None:
    config = SAEConfig(learning_rate=0.1, lr_warmup_steps=10, lr_half_steps=50)
    rates = [rate_at(config, 512, step) for step in (0, 9, 10, 10 + 150, 10**6)]
    assert rates == pytest.approx([0.01, 0.1, 0.1, 0.05, 0.01])
    constant = SAEConfig(learning_rate=0.1, lr_half_steps=None)
    assert rate_at(constant, 512, 10**6) == pytest.approx(0.1)


def test_a_run_of_known_length_ends_with_a_low_rate() -> None:
    config = SAEConfig(learning_rate=0.1, lr_half_steps=None, lr_warmup_steps=0, total_steps=100)
    rates = [rate_at(config, 512, step) for step in (0, 80, 90, 100, 10**6)]
    assert rates == pytest.approx([0.1, 0.1, 0.055, 0.01, 0.01])
