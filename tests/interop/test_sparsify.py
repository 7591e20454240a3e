"""EleutherAI's sparsify opens what we export and computes the same numbers."""

import os
import warnings

import pytest
import torch

from asys_bench.sae import AUTOENCODERS, load_sae
from asys_bench.sae.exchange import FORMATS, ExchangeError, export

pytestmark = [pytest.mark.interop, pytest.mark.rest]
EXPRESSIBLE = ("relu", "topk")


@pytest.fixture(scope="module")
def sparsify():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels want a GPU; read when imported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sparsify", exc_type=ImportError)


def test_encode_and_decode_are_equal(tmp_path, trained, rows, sparsify, architecture):
    trained(tmp_path / "sae", architecture)
    folder = export(tmp_path / "sae" / "latest", FORMATS["sparsify"], tmp_path / "out").folder
    ours, _ = load_sae(tmp_path / "sae" / "latest")
    x_BD = rows(300, seed=5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = sparsify.SparseCoder.load_from_disk(folder)
        many = sparsify.SparseCoder.load_many(str(tmp_path / "out"), local=True)
        top_acts_BK, top_index_BK, _ = theirs.encode(x_BD)
        acts_BF = torch.zeros(len(x_BD), ours.d_sae).scatter(1, top_index_BK, top_acts_BK)
        decoded_BD = theirs.decode(top_acts_BK, top_index_BK)
        forward_BD = theirs(x_BD).sae_out
    with torch.no_grad():
        assert float((acts_BF - ours.encode(x_BD)).abs().max()) < 1e-5
        assert float((decoded_BD - ours.decode(acts_BF)).abs().max()) < 1e-5
        assert float((forward_BD - ours(x_BD)).abs().max()) < 1e-5
    assert list(many) == ["sae"]


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", EXPRESSIBLE)


def test_every_other_architecture_is_refused_with_a_reason(tmp_path, trained):
    others = [a for a in AUTOENCODERS if a not in EXPRESSIBLE]
    for architecture in others:
        trained(tmp_path / architecture, architecture)
        with pytest.raises(ExchangeError, match=r"only TopK.*export it as saelens"):
            export(tmp_path / architecture / "latest", FORMATS["sparsify"], tmp_path / "out")
