"""Exports to sparsify and dictionary_learning, by the formulas those packages document."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from asys_bench.sae import CheckpointError, SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.exchange import (
    FORMATS,
    ExchangeError,
    export,
    find_saes,
    import_sae,
    read_saelens,
)
from asys_bench.sae.exchange.dictionary_learning import write_dictionary_learning
from asys_bench.sae.exchange.sparsify import write_sparsify
from asys_bench.sae.exchange.weights import TENSORS, SAEWeights


def weights(architecture, *, d_in=5, d_out=5, d_sae=12, k=None, widths=()):
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    shapes["W_skip"] = (d_out, d_in)
    tensors = {
        name: torch.randn(shapes.get(name, (d_sae,)), generator=generator)
        for name in TENSORS[architecture]
    }
    return SAEWeights(architecture, tensors, k, widths, {"hook_name": "layers.3.mlp"})


def x_of(d_in=5):
    return torch.randn(100, d_in, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("architecture", "k"),
    [("topk", 3), ("standard", None), ("transcoder", None), ("skip_transcoder", None)],
)
def test_sparsify_files_compute_the_same(tmp_path, apply, architecture, k):
    given = weights(architecture, k=k)
    write_sparsify(given, tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    t = {n: v.double() for n, v in load_file(tmp_path / "sae.safetensors").items()}
    x = x_of().double()
    centred = x if cfg["transcode"] else x - t["b_dec"]
    pre = torch.relu(centred @ t["encoder.weight"].t() + t["encoder.bias"])
    top = torch.topk(pre, cfg["k"])
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    out = acts @ t["W_dec"] + t["b_dec"]
    if cfg["skip_connection"]:
        out = out + x @ t["W_skip"].t()
    ours, ours_out = apply(given, x_of())
    torch.testing.assert_close(acts, ours, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(out, ours_out, atol=1e-9, rtol=1e-9)
    assert cfg["num_latents"] == 12
    assert cfg["d_in"] == 5


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (weights("jumprelu"), "no thresholds.*export it as saelens"),
        (weights("gated"), "no gates.*export it as saelens"),
        (weights("skip_transcoder", d_out=7), "maps 5 to 7; export it as saelens"),
    ],
)
def test_sparsify_refuses_what_it_cannot_compute_and_says_what_can(tmp_path, given, reason):
    with pytest.raises(ExchangeError, match=reason):
        write_sparsify(given, tmp_path)
    assert not list(tmp_path.iterdir())


def uniform(given, threshold=0.7):
    tensors = {**given.tensors, "threshold": torch.full((given.d_sae,), threshold)}
    return replace(given, tensors=tensors)


def unit_rows(given):
    return given.scaled_features(given.decoder_norm_F)


@pytest.mark.parametrize(
    ("given", "dict_class"),
    [
        (unit_rows(weights("standard")), "AutoEncoder"),
        (weights("standard"), "JumpReluAutoEncoder"),
        (weights("topk", k=3), "AutoEncoderTopK"),
        (uniform(weights("jumprelu", k=3)), "BatchTopKSAE"),
        (uniform(weights("jumprelu", k=3, widths=(4, 12))), "MatryoshkaBatchTopKSAE"),
        (uniform(weights("jumprelu")), "JumpReluAutoEncoder"),
        (weights("jumprelu", k=3), "JumpReluAutoEncoder"),
        (weights("gated"), "GatedAutoEncoder"),
    ],
)
def test_dictionary_learning_files_reconstruct_the_same(tmp_path, apply, given, dict_class):
    write_dictionary_learning(given, tmp_path)
    config = json.loads((tmp_path / "trainer_0/config.json").read_text())
    state = torch.load(tmp_path / "trainer_0/ae.pt", weights_only=True)
    t = {name: value.double() for name, value in state.items()}
    assert config["trainer"]["dict_class"] == dict_class
    assert config["trainer"]["layer"] == 3
    assert config["trainer"].get("k") == (given.k if "TopK" in dict_class else None)
    x = x_of().double()
    if dict_class == "AutoEncoder":
        acts = torch.relu((x - t["bias"]) @ t["encoder.weight"].t() + t["encoder.bias"])
        out = acts @ t["decoder.weight"].t() + t["bias"]
    elif dict_class == "GatedAutoEncoder":
        z = (x - t["decoder_bias"]) @ t["encoder.weight"].t()
        gate = (z + t["gate_bias"] > 0).double()
        acts = gate * torch.relu(t["r_mag"].exp() * z + t["mag_bias"])
        out = acts @ t["decoder.weight"].t() + t["decoder_bias"]
    elif dict_class == "JumpReluAutoEncoder":
        pre = x @ t["W_enc"] + t["b_enc"]
        acts = torch.relu(pre * (pre > t["threshold"]))
        out = acts @ t["W_dec"] + t["b_dec"]
    else:
        nested = dict_class == "MatryoshkaBatchTopKSAE"
        W_enc = t["W_enc"] if nested else t["encoder.weight"].t()
        W_dec = t["W_dec"] if nested else t["decoder.weight"].t()
        acts = torch.relu((x - t["b_dec"]) @ W_enc + t["b_enc" if nested else "encoder.bias"])
        if dict_class == "AutoEncoderTopK":
            top = torch.topk(acts, int(state["k"]))
            acts = torch.zeros_like(acts).scatter(1, top.indices, top.values)
        else:
            acts = acts * (acts > t["threshold"])
        out = acts @ W_dec + t["b_dec"]
    ours, ours_out = apply(given, x_of())
    torch.testing.assert_close(acts, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out, ours_out, atol=1e-5, rtol=1e-5)
    if given.widths and dict_class == "MatryoshkaBatchTopKSAE":
        assert state["group_sizes"].tolist() == [4, 8]


def test_dictionary_learning_refuses_transcoders(tmp_path):
    with pytest.raises(ExchangeError, match="no transcoders; export it as saelens or sparsify"):
        write_dictionary_learning(weights("skip_transcoder"), tmp_path)


def test_an_export_never_replaces_unasked_and_replaces_whole(tmp_path, save):
    save(tmp_path / "theirs", "topk")
    out = tmp_path / "out"
    first = export(tmp_path / "theirs", FORMATS["sparsify"], out).folder
    (first / "note.txt").write_text("old")
    with pytest.raises(ExchangeError, match=r"exists; choose another --out, or add --overwrite"):
        export(tmp_path / "theirs", FORMATS["sparsify"], out)
    again = export(tmp_path / "theirs", FORMATS["sparsify"], out, overwrite=True).folder
    assert again == first
    assert sorted(path.name for path in out.iterdir()) == ["layers.3.mlp"]
    assert sorted(path.name for path in again.iterdir()) == ["cfg.json", "sae.safetensors"]


def test_an_export_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path, save):
    save(tmp_path / "theirs", "topk")

    def fail(given, folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    broken = replace(FORMATS["saelens"], name="broken", write=fail)
    with pytest.raises(CheckpointError, match=r"not written.*No space left"):
        export(tmp_path / "theirs", broken, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    kept = export(tmp_path / "theirs", FORMATS["saelens"], tmp_path / "out").folder
    with pytest.raises(CheckpointError):
        export(tmp_path / "theirs", broken, tmp_path / "out", overwrite=True)
    read_saelens(kept)


def test_a_run_a_folder_of_stores_a_store_and_a_checkpoint_all_name_saes(tmp_path, save):
    run = tmp_path / "run"
    for hook in ("a", "b"):
        for step in (1, 2):
            save(run / "sae" / hook / f"step_{step:09d}", "topk")
        (run / "sae" / hook / "latest").symlink_to("step_000000002")
    newest = [run / "sae" / hook / "step_000000002" for hook in ("a", "b")]
    assert find_saes(run) == newest
    assert find_saes(run / "sae") == newest
    assert find_saes(run / "sae/a") == newest[:1]
    assert find_saes(run / "sae/a/step_000000001") == [run / "sae/a/step_000000001"]
    with pytest.raises(ExchangeError, match="no SAE is there"):
        find_saes(tmp_path / "nothing")


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_of_outliers_travels_in_the_metadata_and_comes_back(tmp_path, name):
    sae = build_sae(SAEConfig(d_sae=24, k=3), 6)
    for folder in ("sae", "none"):
        (tmp_path / folder).mkdir()
    save_sae(tmp_path / "sae", sae, InputScaling.identity(6), {"hook_name": "layers.3"}, 12.5)
    made = export(tmp_path / "sae", FORMATS[name], tmp_path / "out")
    assert made.outlier_norm == 12.5
    back, metadata = import_sae(made.folder)
    assert back.outlier_norm == metadata["outlier_norm"] == 12.5
    save_sae(tmp_path / "none", sae, InputScaling.identity(6), {"hook_name": "layers.3"})
    made = export(tmp_path / "none", FORMATS[name], tmp_path / "out", overwrite=True)
    assert made.outlier_norm is None
    assert import_sae(made.folder)[0].outlier_norm == float("inf")


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu", "topk"])
def test_an_export_is_called_as_the_sae_was_trained(tmp_path, save, architecture):
    save(tmp_path / "sae", architecture)
    made = export(tmp_path / "sae", FORMATS["saelens"], tmp_path / "out")
    assert made.architecture == architecture
