"""Sparse products against their dense definitions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.sae.sparse_codes import SparseCodes, gather_dot


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    features=st.integers(1, 12),
    width=st.integers(1, 7),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_sparse_products_equal_dense_ones(
    rows: int, features: int, width: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, features))
    generator = torch.Generator().manual_seed(seed)
    W_FD = torch.randn(features, width, generator=generator)
    x_BD = torch.randn(rows, width, generator=generator)
    index_BK = torch.rand(rows, features, generator=generator).argsort(1)[:, :k].contiguous()
    codes = SparseCodes(index_BK, torch.randn(rows, k, generator=generator))
    dense_BF = codes.dense(features)
    close = torch.testing.assert_close
    close(codes.decode(W_FD), dense_BF @ W_FD, rtol=1e-4, atol=1e-5)
    close(
        gather_dot(index_BK, x_BD, W_FD),
        (x_BD @ W_FD.t()).gather(1, index_BK),
        rtol=1e-4,
        atol=1e-5,
    )
    summed_FD = codes.by_feature(features).accumulate(codes.value_BK, x_BD)
    close(summed_FD, dense_BF.t() @ x_BD, rtol=1e-4, atol=1e-5)
