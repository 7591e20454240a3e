"""SAEs that our export wrote come back from every format as the functions they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asys_bench.sae import AUTOENCODERS, CheckpointError
from asys_bench.sae.exchange import FORMATS, ExchangeError, export, format_of, import_sae

NOT_IN_SPARSIFY = ("batchtopk", "matryoshka", "jumprelu", "gated")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_what_was_exported_computes_the_same(tmp_path, save, rows, architecture, name):
    if name == "sparsify" and architecture in NOT_IN_SPARSIFY:
        pytest.skip("sparsify cannot express it")
    ours = save(tmp_path / "sae", architecture)
    folder = export(tmp_path / "sae", FORMATS[name], tmp_path / "out").folder
    assert format_of(folder) == name
    sae, metadata = import_sae(folder)
    assert sae.d_sae == ours.d_sae
    with torch.no_grad():
        acts_BF = ours.encode(rows)
        torch.testing.assert_close(sae.encode(rows), acts_BF, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(sae(rows), ours(rows), atol=1e-5, rtol=1e-4)
    assert metadata["hook_name"] == "layers.3.mlp"


def test_what_cannot_be_taken_is_named(tmp_path, save):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExchangeError, match="no SAE is there"):
        import_sae(tmp_path / "empty")
    save(tmp_path / "sae", "topk")
    sparsify = export(tmp_path / "sae", FORMATS["sparsify"], tmp_path / "s").folder
    cfg = json.loads((sparsify / "cfg.json").read_text())
    (sparsify / "cfg.json").write_text(json.dumps(cfg | {"activation": "groupmax"}))
    with pytest.raises(ExchangeError, match="'groupmax' is not TopK"):
        import_sae(sparsify)
    (sparsify / "cfg.json").write_text(json.dumps(cfg | {"transcode": True}))
    with pytest.raises(ExchangeError, match="a transcoder of TopK"):
        import_sae(sparsify)
    theirs = export(tmp_path / "sae", FORMATS["dictionary_learning"], tmp_path / "d").folder
    config = json.loads((theirs / "trainer_0/config.json").read_text())
    config["trainer"]["dict_class"] = "IdentityDict"
    (theirs / "trainer_0/config.json").write_text(json.dumps(config))
    with pytest.raises(ExchangeError, match="dict_class 'IdentityDict'; supported: AutoEncoder,"):
        import_sae(theirs)
    config["trainer"]["dict_class"] = "GatedAutoEncoder"
    (theirs / "trainer_0/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tensor 'gate_bias' of a GatedAutoEncoder"):
        import_sae(theirs)


class Code:
    """A pickle of it would run something."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_a_pickle_with_code_is_refused(tmp_path: Path, save, capsys) -> None:
    save(tmp_path / "sae", "topk")
    theirs = export(tmp_path / "sae", FORMATS["dictionary_learning"], tmp_path / "d").folder
    torch.save({"encoder.weight": Code()}, theirs / "trainer_0/ae.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_sae(theirs)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("widths", [["x"], [None], [float("inf")], [1.5], [True]])
def test_widths_that_are_no_whole_numbers_are_named(tmp_path: Path, save, widths) -> None:
    folder = tmp_path / "sae"
    save(folder, "topk")
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["matryoshka_widths"] = widths
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(CheckpointError, match="matryoshka_widths"):
        import_sae(folder)
