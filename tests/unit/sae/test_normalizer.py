"""Running mean and scale."""

import math

import pytest
import torch

from asys_bench.sae.training.normalizer import Normalizer, geometric_median


def _rows(count: int, mean: float, std: float, seed: int = 0) -> torch.Tensor:
    return mean + std * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def test_chunks_add_up_to_the_statistics_of_all_rows() -> None:
    rows_ND = _rows(1000, mean=50.0, std=0.1)
    norm = Normalizer(8, "std", window_rows=10_000)
    for chunk in rows_ND.split([1, 99, 400, 500]):
        norm.update(chunk, torch.ones(len(chunk)))
    rows = rows_ND.double()
    torch.testing.assert_close(norm.mean_D, rows.mean(0), rtol=1e-5, atol=1e-5)
    assert norm.variance == pytest.approx(
        float((rows - rows.mean(0)).square().sum(1).mean()), rel=1e-3
    )
    assert norm.mean_norm == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
    assert norm.scale == pytest.approx(math.sqrt(8 / norm.variance))


def test_weights_count_as_repeated_rows() -> None:
    rows_ND = _rows(10, 1.0, 2.0)
    weighted, repeated = (Normalizer(8, "norm", 1000) for _ in range(2))
    weighted.update(rows_ND, torch.tensor([3.0] + [1.0] * 9))
    repeated.update(torch.cat([rows_ND[:1], rows_ND[:1], rows_ND]), torch.ones(12))
    assert weighted.scale == pytest.approx(repeated.scale, rel=1e-5)


def test_the_window_forgets_what_the_host_no_longer_does() -> None:
    norm = Normalizer(8, "std", window_rows=500)
    norm.update(_rows(5000, 0.0, 1.0), torch.ones(5000))
    for seed in range(20):
        norm.update(_rows(200, 3.0, 4.0, seed), torch.ones(200))
    assert norm.scale == pytest.approx(0.25, rel=0.1)
    assert float(norm.mean_D.mean()) == pytest.approx(3.0, abs=0.5)


def test_rows_before_the_window_leave_no_trace_and_state_survives() -> None:
    norm = Normalizer(8, "std", window_rows=1000)
    norm.update(_rows(5000, 100.0, 10.0), torch.ones(5000))
    for seed in range(40):
        norm.update(_rows(50, 7.0, 1e-3, seed), torch.ones(50))
    assert norm.scale == pytest.approx(1e3, rel=0.05)
    again = Normalizer(8, "std", window_rows=1000)
    again.load_state_dict(norm.state_dict())
    for one in (norm, again):
        one.update(_rows(50, 7.0, 2e-3, 99), torch.ones(50))
    assert again.scale == norm.scale
    assert torch.equal(again.scaling.center_D, norm.scaling.center_D)


@pytest.mark.parametrize("mode", ["none", "std", "norm"])
def test_constant_zero_rows_are_not_scaled(mode: str) -> None:
    norm = Normalizer(8, mode, 100)  # type: ignore[arg-type]
    norm.update(torch.zeros(5, 8), torch.ones(5))
    assert norm.scale == 1.0


def test_geometric_median_ignores_a_few_far_rows() -> None:
    rows_ND = _rows(500, 2.0, 0.5)
    rows_ND[:20] = 1e4
    assert (geometric_median(rows_ND) - 2.0).abs().max() < 0.2
    assert (rows_ND.mean(0) - 2.0).abs().min() > 100
    assert torch.equal(geometric_median(torch.full((3, 2), 7.0)), torch.full((2,), 7.0))
