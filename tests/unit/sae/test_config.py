"""The config's limits and derived values."""

import pytest
from pydantic import ValidationError

from asys_bench.sae import SAEConfig
from asys_bench.sae.schedule import peak_rate, rate_at


def test_every_field_is_described() -> None:
    for name, field in SAEConfig.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_rows": 100, "buffer_rows": 50}, "buffer_rows 50 is less than batch_rows 100"),
        ({"k": 20, "d_sae": 10}, "k 20 is more than d_sae 10"),
        ({"architecture": "relu", "dead_policy": "auxk"}, "valid here: auto, resample, none"),
        ({"target_l0": 5}, "target_l0 steers"),
        ({"nonsense": 1}, "Extra inputs"),
        ({"passes": 0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SAEConfig.model_validate(fields)


def test_features_come_from_the_expansion_factor_unless_given() -> None:
    assert SAEConfig().features(64) == 512
    assert SAEConfig(d_sae=100).features(64) == 100
    with pytest.raises(ValueError, match="k 16 is more than d_sae 8"):
        SAEConfig(expansion_factor=2).features(4)


def test_learning_rate_warms_up_then_decays_to_its_floor() -> None:
    config = SAEConfig(learning_rate=0.1, lr_warmup_steps=10, lr_decay_steps=100, lr_min_ratio=0.2)
    rates = [rate_at(config, 512, step) for step in range(200)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.06)
    assert rates[-1] == pytest.approx(0.02)


def test_default_learning_rate_falls_with_the_square_root_of_the_features() -> None:
    config = SAEConfig()
    assert peak_rate(config, 1 << 14) == pytest.approx(8e-4)
    assert peak_rate(config, 1 << 16) == pytest.approx(4e-4)
    assert rate_at(config, 1 << 14, 10**9) == pytest.approx(8e-4)
