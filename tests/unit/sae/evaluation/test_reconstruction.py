"""Streaming measurements equal those on all rows at once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.evaluation import ReconstructionMeter, density_histogram, evaluate
from asys_bench.sae.metrics import firing_rates, fraction_of_variance_unexplained


def rows(count: int, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0)) + mean


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(1, 299), max_size=5, unique=True),
    mean=st.sampled_from([0.0, 1e4]),
)
def test_the_batches_it_comes_in_do_not_matter(cuts: list[int], mean: float) -> None:
    x_ND = rows(300, mean)
    generator = torch.Generator().manual_seed(1)
    x_hat_ND = x_ND + 0.3 * torch.randn(300, 6, generator=generator)
    acts_NF = torch.relu(torch.randn(300, 4, generator=generator))
    weight_N = torch.rand(300, generator=generator) + 0.1
    meter = ReconstructionMeter(6, 4)
    sizes = torch.tensor([0, *sorted(cuts), 300]).diff().tolist()
    for part in zip(*(t.split(sizes) for t in (x_ND, x_hat_ND, acts_NF, weight_N)), strict=True):
        meter.update(*part)
    report = meter.report()
    expected = fraction_of_variance_unexplained(x_ND, x_hat_ND, weight_N)
    assert report.fvu == pytest.approx(expected, rel=1e-9)
    assert report.l0 == pytest.approx(float(firing_rates(acts_NF, weight_N).sum()), rel=1e-9)
    assert report.rows == 300


def test_an_sae_is_measured_on_raw_rows() -> None:
    sae = build_sae(SAEConfig(d_sae=24, k=3), 6)
    x_ND = rows(500)
    report = evaluate(sae, x_ND.split(64))
    with torch.no_grad():
        whole = fraction_of_variance_unexplained(x_ND, sae(x_ND), torch.ones(500))
        acts_NF = sae.encode(x_ND)
    assert report.fvu == pytest.approx(whole)
    assert report.l0 == pytest.approx(float((acts_NF > 0).sum()) / 500)
    assert report.dead_fraction == pytest.approx(float((acts_NF.sum(0) == 0).double().mean()))
    assert report.density.silent == round(report.dead_fraction * 24)


def test_outliers_count_in_the_fvu_of_all_rows_alone() -> None:
    sae = build_sae(SAEConfig(d_sae=24, k=3), 6)
    x_ND = rows(500)
    x_ND[::100] *= 1000
    usual_N = torch.arange(500) % 100 != 0
    plain = evaluate(sae, [x_ND[usual_N]])
    sae.outlier_norm = 50.0
    report = evaluate(sae, x_ND.split(64))
    assert report.rows == 495
    assert report.outlier_share == pytest.approx(0.01)
    assert report.fvu == pytest.approx(plain.fvu)
    assert report.l0 == pytest.approx(plain.l0)
    assert (report.dead_fraction, report.mse) == pytest.approx((plain.dead_fraction, plain.mse))
    with torch.no_grad():
        whole = fraction_of_variance_unexplained(x_ND, sae(x_ND), torch.ones(500))
    assert report.fvu_all == pytest.approx(whole)
    assert report.fvu_all < 1e-4 * report.fvu


def test_constant_rows_are_explained_exactly_or_not_at_all() -> None:
    meter = ReconstructionMeter(2, 3)
    meter.update(torch.ones(5, 2), torch.ones(5, 2), torch.zeros(5, 3))
    assert meter.report().fvu == 0.0
    meter.update(torch.ones(5, 2), torch.zeros(5, 2), torch.zeros(5, 3))
    assert meter.report().fvu == math.inf


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        ReconstructionMeter(2, 3).report()
    with pytest.raises(ValueError, match="no rows"):
        evaluate(build_sae(SAEConfig(d_sae=4, k=1), 2), [])


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), max_size=60))
def test_every_feature_is_in_one_bin_or_silent(rates: list[float]) -> None:
    found = density_histogram(torch.tensor(rates, dtype=torch.float64), bins=7)
    assert sum(found.counts) + found.silent == len(rates)
    assert found.silent == sum(rate == 0 for rate in rates)
    assert len(found.edges_log10) == 8


def test_densities_fall_in_their_decades() -> None:
    rate_F = torch.tensor([0.0, 1e-9, 1e-3, 2e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
    found = density_histogram(rate_F, bins=7, lowest_log10=-7)
    assert found.silent == 1
    assert found.counts == (1, 0, 0, 1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        density_histogram(torch.tensor([1.5]))
