"""Adam by rows: a feature's moments belong to the batches that have a gradient for it."""

import pytest
import torch

from asys_bench.sae.config import SAEConfig
from asys_bench.sae.training.learner import Learner

ROWS = {"W_enc", "W_dec", "b_enc"}
"""Parameters with a row per feature."""


def learner(d_sae: int = 6, d_in: int = 3) -> Learner:
    return Learner(SAEConfig(d_sae=d_sae, k=2, dtype="float32"), d_in)


def give_gradients(one: Learner, features: list[int], value: float = 1.0) -> None:
    """The same gradient to every weight of these features, none to the others."""
    for name, parameter in one.sae.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
        of_feature = one.sae.feature_major(name, parameter.grad)
        (parameter.grad if of_feature is None else of_feature[features]).add_(value)
        if of_feature is not None:
            of_feature[features] = value


def step(one: Learner, features: list[int], rate: float = 1e-3) -> None:
    give_gradients(one, features)
    one.adam.gradient_norm()
    assert one.adam.step(rate, 1.0)


def test_a_feature_without_a_gradient_stays_as_it_is():
    one = learner()
    step(one, [0, 1, 2])
    state = one.adam.state_dict()
    kept = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    before = {name: p.detach().clone() for name, p in one.sae.named_parameters()}
    step(one, [0])
    for name in ROWS:
        now_FX = one.sae.feature_major(name, one.sae.get_parameter(name).detach())
        was_FX = one.sae.feature_major(name, before[name])
        assert torch.equal(now_FX[1:], was_FX[1:])
        assert not torch.equal(now_FX[0], was_FX[0])
        for part in ("exp_avg", "exp_avg_sq"):
            moment = one.sae.feature_major(name, state[f"{name}.{part}"])
            assert torch.equal(moment[1:], one.sae.feature_major(name, kept[f"{name}.{part}"])[1:])
        assert state[f"{name}.row_steps"].tolist() == [2, 1, 1, 0, 0, 0]


def test_the_first_gradient_after_a_thousand_batches_moves_a_weight_by_the_rate():
    """0.032 times the moments of before, as it was, is 3.2 rates at once and 31.6 in all."""
    one = learner()
    step(one, [0, 1])
    for _ in range(1000):
        step(one, [0])
    before = one.sae.b_enc.detach().clone()
    rate = 1e-3 / max(1.0, one.sae.d_in**0.5)  # a bias learns sqrt(D) times as fast
    step(one, [0, 1], rate)
    moved = before - one.sae.b_enc.detach()
    assert moved[:2].tolist() == pytest.approx([1e-3, 1e-3], rel=1e-2)
    still = one.sae.b_enc.detach().clone()
    step(one, [0], rate)
    assert torch.equal(one.sae.b_enc.detach()[1:], still[1:])


def test_a_feature_that_starts_anew_begins_its_steps_anew():
    one = learner()
    step(one, [0, 1])
    one.adam.forget(torch.tensor([1]))
    assert one.adam.row_steps["W_enc"].tolist() == [1, 0, 0, 0, 0, 0]
    assert one.adam.row_steps["b_dec"].tolist() == [1]


def test_a_state_of_before_rows_had_steps_goes_on_with_those_of_all():
    one = learner()
    for _ in range(3):
        step(one, [0, 1])
    state = {n: v for n, v in one.adam.state_dict().items() if not n.endswith("row_steps")}
    other = learner()
    other.adam.load_state_dict(state)
    assert other.adam.row_steps["W_dec"].tolist() == [3] * 6
