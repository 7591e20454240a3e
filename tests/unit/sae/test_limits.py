"""Matching pursuit in tests/benchmarks/sae/limits.py, against what is known of it."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def limits(monkeypatch):
    for folder in ("tests/benchmarks/sae", "suites/peers"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import limits

    yield limits
    for name in ("limits", "trainers"):
        sys.modules.pop(name, None)


def test_of_orthogonal_directions_pursuit_takes_the_k_with_the_largest_positive_products(limits):
    atoms_FD = 3.0 * torch.linalg.qr(torch.randn(16, 16))[0]
    x_ND = torch.randn(40, 16)
    along_NF = x_ND @ atoms_FD.t() / 9.0
    value_NK, index_NK = along_NF.topk(3, dim=1)
    expected_ND = torch.zeros_like(along_NF).scatter(1, index_NK, value_NK) @ atoms_FD
    torch.testing.assert_close(limits.pursuit(x_ND, atoms_FD, 3), expected_ND, atol=1e-4, rtol=0)


def test_pursuit_recovers_sums_of_few_directions_that_products_alone_do_not(limits):
    generator = torch.Generator().manual_seed(0)
    atoms_FD = torch.randn(256, 128, generator=generator)
    codes_NF = torch.zeros(300, 256)
    for code_F in codes_NF:
        code_F[torch.randperm(256, generator=generator)[:5]] = 1.0
    x_ND = codes_NF @ atoms_FD
    assert limits.fvu(x_ND, limits.pursuit(x_ND, atoms_FD, 5)) < 1e-3
    unit_FD = atoms_FD / torch.linalg.vector_norm(atoms_FD, dim=1, keepdim=True)
    value_NK, index_NK = (x_ND @ unit_FD.t()).topk(5, dim=1)
    products_ND = torch.zeros_like(codes_NF).scatter(1, index_NK, value_NK) @ unit_FD
    assert limits.fvu(x_ND, products_ND) > 0.03


def test_epochs_give_each_row_once_a_pass_in_another_order(limits):
    rows_ND = torch.arange(10.0).unsqueeze(1)
    batches = list(limits.epochs_of(rows_ND, 4, 20, seed=1))
    seen = torch.cat(batches).squeeze(1)
    assert len(batches) == 5
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
