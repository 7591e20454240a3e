"""SAELens folders of any origin become SAEs of raw rows."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from asys_bench.sae import AUTOENCODERS, CheckpointError, load_sae
from asys_bench.sae.exchange import (
    FORMATS,
    ExchangeError,
    SAEWeights,
    export,
    import_saelens,
    read_saelens,
)


def foreign(folder, tensors, **cfg):
    """A folder as SAELens writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    d_in, d_sae = tensors["W_enc"].shape
    base = {"architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": "float32"}
    (folder / "cfg.json").write_text(json.dumps({**base, "metadata": {}, **cfg}))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def linear(d_in=5, d_sae=12, **more):
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    shapes |= more
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def x_of(d_in=5, rows=100):
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_our_checkpoint_read_as_weights_computes_the_same(
    tmp_path, save, apply, rows, architecture
):
    save(tmp_path, architecture)
    ours, metadata = load_sae(tmp_path)
    weights = read_saelens(tmp_path)
    acts_BF, out_BD = apply(weights, rows)
    assert weights.architecture == ours.saelens_name
    assert weights.hook_name == metadata["hook_name"] == "layers.3.mlp"
    torch.testing.assert_close(ours.encode(rows), acts_BF.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(rows), out_BD.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_a_saelens_export_is_what_was_there(tmp_path, save, architecture):
    save(tmp_path / "run/sae/layers.3.mlp/step_000000001", architecture)
    made = export(
        tmp_path / "run/sae/layers.3.mlp/step_000000001", FORMATS["saelens"], tmp_path / "out"
    )
    assert made.folder == tmp_path / "out/layers.3.mlp"
    before = load_file(tmp_path / "run/sae/layers.3.mlp/step_000000001/sae_weights.safetensors")
    after = load_file(made.folder / "sae_weights.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, _ = import_saelens(made.folder)
    assert type(again) is type(load_sae(tmp_path / "run/sae/layers.3.mlp/step_000000001")[0])


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_an_sae_that_does_not_centre_its_input_is_brought_to_one_that_does(
    tmp_path, apply, architecture
):
    tensors = linear()
    if architecture == "gated":
        bias = tensors.pop("b_enc")
        tensors |= {"b_gate": bias, "b_mag": bias * 0.5, "r_mag": bias * 0.1}
    if architecture == "jumprelu":
        tensors["threshold"] = torch.rand(12)
    folder = foreign(tmp_path, tensors, architecture=architecture, apply_b_dec_to_input=False)
    uncentred = SAEWeights(architecture, {**tensors, "b_dec": torch.zeros(5)})
    acts_BF, out_BD = apply(uncentred, x_of())
    read_BF, read_BD = apply(read_saelens(folder), x_of())
    torch.testing.assert_close(read_BF, acts_BF, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read_BD, out_BD + tensors["b_dec"].double(), atol=1e-4, rtol=1e-5)


def test_activations_in_units_of_decoder_norm_are_folded(tmp_path, apply):
    tensors = linear()
    folder = foreign(tmp_path, tensors, architecture="topk", k=4, rescale_acts_by_decoder_norm=True)
    norm_F = tensors["W_dec"].double().norm(dim=1)
    pre_BF = ((x_of() - tensors["b_dec"]).double() @ tensors["W_enc"].double()
              + tensors["b_enc"].double()) * norm_F  # fmt: skip
    top = torch.topk(pre_BF, 4)
    acts_BF = torch.zeros_like(pre_BF).scatter(1, top.indices, torch.relu(top.values))
    out_BD = (acts_BF / norm_F) @ tensors["W_dec"].double() + tensors["b_dec"].double()
    read_BF, read_BD = apply(read_saelens(folder), x_of())
    torch.testing.assert_close(read_BF, acts_BF, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read_BD, out_BD, atol=1e-5, rtol=1e-5)


def test_the_input_scale_of_a_training_checkpoint_is_folded(tmp_path, apply):
    tensors = linear()
    cfg = {"normalize_activations": "expected_average_only_in"}
    folder = foreign(tmp_path, tensors, **cfg)
    with pytest.raises(ExchangeError, match=r"activation_scaler\.json is missing.*fold it"):
        read_saelens(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    scaled = SAEWeights("standard", tensors)
    acts_BF, out_BD = apply(scaled, x_of() * 2.0)
    read_BF, read_BD = apply(read_saelens(folder), x_of())
    torch.testing.assert_close(read_BF, acts_BF, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read_BD, out_BD / 2.0, atol=1e-5, rtol=1e-5)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0}')
    with pytest.raises(CheckpointError, match="0 is not a positive number"):
        read_saelens(folder)


def test_a_batchtopk_training_checkpoint_becomes_its_threshold(tmp_path, apply):
    tensors = {**linear(), "topk_threshold": torch.tensor(1.5, dtype=torch.float64)}
    folder = foreign(tmp_path, tensors, architecture="batchtopk", k=3.6)
    weights = read_saelens(folder)
    assert weights.architecture == "jumprelu"
    assert weights.threshold == 1.5
    assert weights.k == 4
    assert weights.metadata["training_architecture"] == "batchtopk"
    acts_BF, _ = apply(weights, x_of())
    assert float(acts_BF[acts_BF > 0].min()) > 1.5


@pytest.mark.parametrize(
    ("cfg", "reason"),
    [
        ({"normalize_activations": "layer_norm"}, "layer_norm.*from each row.*fold it"),
        ({"reshape_activations": "hook_z"}, "hook_z.*rows' shape"),
        ({"architecture": "temporal"}, "'temporal' is not supported; supported: standard, topk"),
    ],
)
def test_what_weights_cannot_express_is_refused_with_the_way_out(tmp_path, cfg, reason):
    with pytest.raises(ExchangeError, match=reason):
        read_saelens(foreign(tmp_path, linear(), **cfg))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"b_enc": torch.zeros(11)}, r"b_enc is \(11,\), wanted \(12,\)"),
        ({"W_dec": torch.zeros(12, 6)}, r"rows of 6 from rows of 5|b_dec is"),
        ({"extra": torch.zeros(1)}, "got"),
        ({"W_enc": torch.full((5, 12), torch.inf)}, "not finite"),
        ({"W_enc": torch.zeros(5)}, "W_enc"),
    ],
)
def test_inconsistent_tensors_are_refused(tmp_path, change, reason):
    folder = foreign(tmp_path, linear())
    save_file({**linear(), **change}, folder / "sae_weights.safetensors")
    with pytest.raises((CheckpointError, ExchangeError), match=reason):
        read_saelens(folder)


def test_importing_names_the_folder_that_was_given(tmp_path):
    folder = foreign(tmp_path / "theirs", linear(), architecture="topk", k=99)
    with pytest.raises(CheckpointError, match=r"k 99 is not in 1\.\.12") as caught:
        import_saelens(folder)
    assert folder in caught.value.path.parents
