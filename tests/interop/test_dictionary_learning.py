"""dictionary_learning opens what we export and computes the same numbers."""

import warnings

import pytest
import torch

from asys_bench.sae import AUTOENCODERS, load_sae
from asys_bench.sae.exchange import FORMATS, export

pytestmark = [pytest.mark.interop, pytest.mark.rest]
CLASSES = {
    "relu": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
}


@pytest.fixture(scope="module")
def utils():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("dictionary_learning.utils", exc_type=ImportError)


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_encode_and_decode_are_equal(tmp_path, trained, rows, utils, architecture):
    trained(tmp_path / "sae", architecture)
    made = export(tmp_path / "sae" / "latest", FORMATS["dictionary_learning"], tmp_path / "out")
    ours, _ = load_sae(tmp_path / "sae" / "latest")
    x_BD = rows(300, seed=5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs, config = utils.load_dictionary(str(made.folder / "trainer_0"), "cpu")
        their_acts_BF = theirs.encode(x_BD)
        acts_BF, out_BD = ours.encode(x_BD), ours(x_BD)
        assert type(theirs).__name__ == CLASSES[architecture]
        assert float((their_acts_BF - acts_BF).abs().max()) < 1e-5
        assert float((theirs.decode(acts_BF) - ours.decode(acts_BF)).abs().max()) < 1e-5
        assert float((theirs.decode(their_acts_BF) - out_BD).abs().max()) < 1e-5
    assert config["trainer"]["activation_dim"] == 24
    assert config["trainer"]["layer"] == 1
