"""Recovery of a known dictionary, and data that has one."""

import pytest
import torch

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.evaluation import SyntheticFeatures, max_cosines, recovery


def test_a_permuted_and_rescaled_dictionary_is_fully_recovered() -> None:
    truth_GD = SyntheticFeatures(50, 16, 3.0).directions_GD
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    found = recovery(truth_GD, truth_GD[order] * torch.linspace(0.1, 9, 50).unsqueeze(1))
    assert found.mmcs == pytest.approx(1.0, abs=1e-5)
    assert found.recovered == 1.0


def test_what_is_missing_or_flipped_is_not_recovered() -> None:
    truth_GD = torch.eye(4)
    learned_FD = torch.stack([truth_GD[0], -truth_GD[1], torch.zeros(4)])
    assert max_cosines(truth_GD, learned_FD).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert recovery(truth_GD, learned_FD).recovered == 0.25


def test_sides_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="one width"):
        max_cosines(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match="with rows"):
        max_cosines(torch.eye(3), torch.zeros(0, 3))


def test_the_same_seed_makes_the_same_data_and_a_prefix_of_it() -> None:
    one, other = SyntheticFeatures(64, 16, 4.0, seed=5), SyntheticFeatures(64, 16, 4.0, seed=5)
    assert torch.equal(one.directions_GD, other.directions_GD)
    long = one.rows(5000)
    torch.testing.assert_close(long[:100], other.rows(100), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(long[:100], one.rows(100, stream=1))
    assert not torch.equal(one.directions_GD, SyntheticFeatures(64, 16, 4.0, seed=6).directions_GD)


@pytest.mark.parametrize(("features", "mean_l0"), [(1024, 16.0), (32, 20.0), (10, 9.0)])
def test_rates_fall_by_a_power_law_and_sum_to_the_mean_l0(features: int, mean_l0: float) -> None:
    data = SyntheticFeatures(features, 8, mean_l0)
    assert float(data.rate_G.sum()) == pytest.approx(mean_l0, rel=1e-4)
    assert float(data.rate_G.max()) <= 0.9 + 1e-6
    assert bool((data.rate_G.diff() <= 1e-6).all())
    expected = (data.rate_G * 1.0833).sum() + 0  # E[a^2] = p (1 + 1/12) along a unit direction
    spread = data.rows(20_000).double().square().sum(1).mean()
    cross = (data.rate_G @ data.directions_GD).square().sum() - (
        data.rate_G.square().sum()
    )  # what directions that are not orthogonal add
    assert float(spread) == pytest.approx(float(expected + cross), rel=0.05)


def test_impossible_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mean_l0 11.*\(0, 9\]"):
        SyntheticFeatures(10, 4, 11)


def test_an_sae_of_the_same_seed_does_not_begin_with_the_truth() -> None:
    for seed in (0, 1):
        sae = build_sae(SAEConfig(d_sae=128, k=4, seed=seed), 64)
        found = recovery(SyntheticFeatures(64, 64, 4.0, seed=seed).directions_GD, sae.W_dec)
        assert found.mmcs < 0.5
