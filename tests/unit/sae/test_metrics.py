"""Metrics against naive loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.metrics import (
    firing_rates,
    fraction_of_variance_unexplained,
    mean_cosine,
    mean_squared_error,
    measure,
)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 12), width=st.integers(1, 6), seed=st.integers(0, 999))
def test_metrics_equal_naive_formulas(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) + 3
    y = x + 0.3 * torch.randn(rows, width, generator=generator)
    w = torch.rand(rows, generator=generator) + 0.1
    X, Y, W = x.tolist(), y.tolist(), w.tolist()
    total = sum(W)
    mean = [sum(W[i] * X[i][j] for i in range(rows)) / total for j in range(width)]
    error = [sum((a - b) ** 2 for a, b in zip(X[i], Y[i], strict=True)) for i in range(rows)]
    spread = [sum((a - m) ** 2 for a, m in zip(X[i], mean, strict=True)) for i in range(rows)]
    cosine = [
        sum(a * b for a, b in zip(X[i], Y[i], strict=True)) / math.hypot(*X[i]) / math.hypot(*Y[i])
        for i in range(rows)
    ]
    dot = lambda values: sum(a * b for a, b in zip(W, values, strict=True))  # noqa: E731
    assert mean_squared_error(x, y, w) == pytest.approx(dot(error) / width / total, rel=1e-4)
    assert fraction_of_variance_unexplained(x, y, w) == pytest.approx(
        dot(error) / dot(spread), rel=1e-3
    )
    assert mean_cosine(x, y, w) == pytest.approx(dot(cosine) / total, rel=1e-4)


def test_predicting_the_mean_leaves_all_variance_unexplained() -> None:
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) + 10
    assert fraction_of_variance_unexplained(
        x, x.mean(0).expand_as(x), torch.ones(100)
    ) == pytest.approx(1.0, rel=1e-4)


def test_constant_rows_have_no_variance_to_explain() -> None:
    x, w = torch.ones(5, 3), torch.ones(5)
    assert fraction_of_variance_unexplained(x, x, w) == 0.0
    assert fraction_of_variance_unexplained(x, x + 1, w) == math.inf


def test_firing_rates_weigh_rows() -> None:
    acts_BF = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    assert firing_rates(acts_BF, torch.tensor([1.0, 1.0, 2.0])).tolist() == [0.5, 0.0]


def test_measuring_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = build_sae(SAEConfig(d_sae=32, k=4), 8)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    scaling = InputScaling(2.0, torch.full((8,), 0.5))
    whole = measure(sae, scaling, x, torch.ones(50), 0.25)
    monkeypatch.setattr("asys_bench.sae.metrics.CHUNK_ELEMENTS", 32 * 7)
    parts = measure(sae, scaling, x, torch.ones(50), 0.25)
    assert parts.fvu == pytest.approx(whole.fvu, rel=1e-5)
    assert parts.l0 == pytest.approx(whole.l0)
    assert whole.rows == 50
    assert whole.l0 <= 4
    assert whole.dead_fraction == 0.25
