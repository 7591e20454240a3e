"""Fits of linear probes: those of scikit-learn, from dense rows and from the features of an SAE."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from asys_bench.change.probe.fit import (
    MOST_WHITENED,
    Dense,
    Sparse,
    fit_classes,
    fit_numbers,
    whitening,
)


def rows(count=400, width=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 3, width)
    x = torch.randn(count, width, generator=draw) * scale + 5 * scale
    logits = (x / scale - 5) @ torch.linspace(-1, 1, width)
    return x, logits, draw


def basis_of(x, is_whitened, l2):
    return whitening(Dense(x), l2) if is_whitened else None


@pytest.mark.parametrize("is_whitened", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_fitted_as_scikit_learn_fits_them(classes, is_whitened):
    x, logits, draw = rows()
    noisy = logits + torch.randn(len(x), generator=draw)
    y = torch.bucketize(noisy, noisy.quantile(torch.linspace(0, 1, classes + 1)[1:-1]))
    weight = torch.rand(len(x), generator=draw) + 0.5
    basis = basis_of(x, is_whitened, 1.0)
    found = fit_classes(Dense(x), y, weight, classes, l2=1.0, basis=basis).of(Dense(x))
    share = weight / weight.sum()
    mean, scale = share @ x, (share @ x.square() - (share @ x).square()).sqrt()
    scaled = ((x - mean) / scale).numpy()
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(
        scaled, y.numpy(), sample_weight=weight.numpy()
    )
    expected = torch.from_numpy(theirs.decision_function(scaled)).float().view(len(x), -1)
    if classes > 2:  # a softmax does not care for what all classes share
        found, expected = found - found.mean(1, True), expected - expected.mean(1, True)
    assert torch.allclose(found, expected, atol=0.03)


@pytest.mark.parametrize("is_whitened", [False, True])
def test_numbers_are_fitted_as_scikit_learn_fits_them(is_whitened):
    x, logits, draw = rows()
    y = 1000 * (logits + torch.randn(len(x), generator=draw)) + 50_000
    basis = basis_of(x, is_whitened, 2.0)
    found = fit_numbers(Dense(x), y, torch.ones(len(x)), l2=2.0, basis=basis).of(Dense(x))[:, 0]
    scaled = StandardScaler().fit_transform(x.numpy())
    expected = Ridge(alpha=2.0).fit(scaled, y.numpy()).predict(scaled)
    assert torch.allclose(found, torch.from_numpy(expected).float(), atol=0.02 * float(y.std()))


def test_a_fit_that_goes_on_costs_fewer_passes():
    x, logits, draw = rows()
    y = (logits + torch.randn(len(x), generator=draw) > 0).long()
    passes = []

    class Counted(Dense):
        def times(self, beta_DC):
            passes[-1] += 1
            return super().times(beta_DC)

    def fit(start):
        passes.append(0)
        return fit_classes(Counted(x), y, torch.ones(len(x)), 2, 1.0, start)

    first = fit(None)
    again = fit(first)
    assert passes[1] < passes[0] / 2
    assert torch.allclose(again.weight, first.weight, rtol=0.05, atol=1e-4)


def test_features_that_are_mostly_zero_are_fitted_as_if_they_were_written_out():
    draw = torch.Generator().manual_seed(1)
    width, active = 40, 5
    index = torch.stack([torch.randperm(width, generator=draw)[:active] for _ in range(300)])
    value = torch.rand(300, active, generator=draw) + 0.1
    full = torch.zeros(300, width).scatter_(1, index, value)
    y = (full[:, 3] - full[:, 7] + 0.2 * torch.randn(300, generator=draw) > 0).long()
    sparse = Sparse(index, value, width)
    assert torch.allclose(sparse.times(torch.eye(width)), full)
    assert torch.allclose(sparse.turned(torch.ones(300, 1))[:, 0], full.sum(0), atol=1e-4)
    probe = fit_classes(sparse, y, torch.ones(300), 2, 1.0)
    assert torch.allclose(probe.of(sparse), probe.of(Dense(full)), atol=1e-4)
    told = (full[:, 3] - full[:, 7]).abs() > 0.4
    found = (probe.of(sparse)[:, 0] > 0).long()
    assert float((found == y)[told].float().mean()) > 0.95


def test_columns_that_never_change_and_huge_ones_do_no_harm():
    x, logits, _ = rows(width=4)
    x = torch.cat([x, torch.full((len(x), 1), 1e6), torch.zeros(len(x), 1)], dim=1)
    y = (logits > 0).long()
    probe = fit_classes(Dense(x), y, torch.ones(len(x)), 2, 1.0)
    assert torch.isfinite(probe.weight).all()
    assert float(((probe.of(Dense(x))[:, 0] > 0).long() == y).float().mean()) > 0.95


def test_columns_that_say_nearly_the_same_take_few_passes_in_the_basis_of_their_window():
    draw = torch.Generator().manual_seed(2)
    own = torch.randn(2000, 24, generator=draw)
    x = torch.randn(2000, 1, generator=draw) + 0.05 * own
    x[:, 7] = 3.0  # says nothing
    y = (own[:, 0] - own[:, 1] + 0.3 * torch.randn(2000, generator=draw) > 0).long()
    passes, found = [], []

    class Counted(Dense):
        def times(self, beta_DC):
            passes[-1] += 1
            return super().times(beta_DC)

    for basis in (None, whitening(Dense(x), 1.0)):
        passes.append(0)
        found.append(fit_classes(Counted(x), y, torch.ones(2000), 2, 1.0, basis=basis))
    assert passes[1] < passes[0] / 2
    assert [one.weight[0, 7] for one in found] == [0, 0]
    said = [one.of(Dense(x))[:, 0] for one in found]
    assert torch.corrcoef(torch.stack(said))[0, 1] > 0.999
    passes.append(0)
    fit_classes(Counted(x), y, torch.ones(2000), 2, 1.0, found[1], whitening(Dense(x), 1.0))
    assert passes[2] <= 4, "where the last one ended"


def test_wide_rows_and_sparse_ones_have_no_basis():
    assert whitening(Dense(torch.randn(4, MOST_WHITENED + 1)), 1.0) is None
    assert whitening(Sparse(torch.zeros(4, 2).long(), torch.ones(4, 2), 8), 1.0) is None
    few = whitening(Dense(torch.randn(3, 8)), 1.0)
    assert few is not None
    assert torch.allclose(few.to_basis_DD @ few.of_basis_DD, torch.eye(8), atol=1e-3)
