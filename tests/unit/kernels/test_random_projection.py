"""random_projection: the matrix is what its name says, and the map is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asys_bench.contracts.packet import PacketError
from asys_bench.kernels.random_projection.kernel import (
    MatrixRule,
    RandomProjectionOptions,
    RandomProjectionPreprocessor,
    dense,
    plugin,
)

KINDS = ["gaussian", "achlioptas"]


def matrix(kind, d_in, d_out, seed=0):
    return dense(MatrixRule(kind, d_out, seed).panels(d_in), d_out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_has_the_moments_of_its_paper(kind):
    entries = matrix(kind, 1000, 200).astype(np.float64) * np.sqrt(200)
    assert abs(entries.mean()) < 0.01
    assert abs(entries.var() - 1) < 0.02
    if kind == "achlioptas":
        assert set(np.round(np.unique(entries), 6)) == {-1.732051, 0.0, 1.732051}
        assert abs((entries == 0).mean() - 2 / 3) < 0.01
    else:
        assert abs((entries**4).mean() - 3) < 0.1
        assert 4 < np.abs(entries).max() < 7


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_matrix_product(kind):
    tensor = torch.randn(4, 5, 300)
    projected = RandomProjectionPreprocessor(MatrixRule(kind, 90, 1)).apply(tensor).tensor
    expected = tensor.double() @ torch.from_numpy(matrix(kind, 300, 90, 1)).double()
    assert projected.shape == (4, 5, 90)
    assert torch.allclose(projected.double(), expected, atol=1e-4)


def test_lengths_survive_on_average():
    rows = torch.randn(200, 500)
    projected = RandomProjectionPreprocessor(MatrixRule("gaussian", 256, 7)).apply(rows).tensor
    ratio = projected.square().sum(1) / rows.square().sum(1)
    assert abs(float(ratio.mean()) - 1) < 0.03
    assert float(ratio.std()) == pytest.approx((2 / 256) ** 0.5, rel=0.25)


def test_seed_and_width_choose_the_matrix():
    base = matrix("gaussian", 50, 20, 1)
    assert np.array_equal(base, matrix("gaussian", 50, 20, 1))
    assert not np.array_equal(base, matrix("gaussian", 50, 20, 2))
    assert not np.array_equal(base, matrix("gaussian", 51, 20, 1)[:50])


def test_a_stated_width_makes_the_matrix_at_the_start():
    kernel = plugin.build(RandomProjectionOptions(d_in=128, d_out=8))
    made = kernel.panels(128)
    assert kernel.panels(128) is made


def test_a_matrix_that_would_fill_the_memory_is_refused():
    with pytest.raises(PacketError, match="lower d_out"):
        plugin.build(RandomProjectionOptions(d_in=1 << 20, d_out=65536))
