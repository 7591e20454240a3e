"""Every architecture's function, its start, and the decoder's norm."""

import pytest
import torch

from asys_bench.sae import (
    ARCHITECTURES,
    AUTOENCODERS,
    SAEConfig,
    SparseAutoencoder,
    StepContext,
    build_sae,
)
from asys_bench.sae.architectures.batchtopk import BatchTopKSAE
from asys_bench.sae.architectures.data_start import RIDGE, firing_quantile, read_and_written
from asys_bench.sae.architectures.jumprelu import JumpReLUSAE
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.kernels.compiled_kernels import CompiledKernels

D, F, B = 12, 40, 64


def _sae(architecture: str) -> SparseAutoencoder:
    split = {"hook_widths": (5, D - 5)} if architecture == "crosscoder" else {}
    config = SAEConfig.model_validate(
        {"architecture": architecture, "d_sae": F, "k": 5, "aux_k": 3, **split}
    )
    sae = build_sae(config, D)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "W_dec":
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in sae.named_buffers():
            assert name == "threshold"
            buffer.fill_(0.7)
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.abs_()
    return sae


def _rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_follows_the_equation(architecture: str) -> None:
    sae, x_BD = _sae(architecture), _rows()
    input_BD = x_BD if architecture == "skip_transcoder" else x_BD - sae.b_dec
    product_BF = (input_BD @ sae.W_enc).detach()
    acts_BF = sae.encode(x_BD).detach()
    parameters = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    wanted_BF = torch.zeros(B, F)
    for row in range(B):
        if architecture == "gated":
            magnitude_F = parameters["r_mag"].exp() * product_BF[row] + parameters["b_mag"]
            open_F = product_BF[row] + parameters["b_gate"] > 0
            wanted_BF[row] = torch.relu(magnitude_F) * open_F
            continue
        pre_F = product_BF[row] + parameters["b_enc"]
        if architecture == "topk":
            keep = pre_F.topk(5).indices
        elif "threshold" in parameters:
            keep = (pre_F > parameters["threshold"]).nonzero().squeeze(1)
        else:
            keep = torch.arange(F)
        wanted_BF[row, keep] = torch.relu(pre_F[keep])
    torch.testing.assert_close(acts_BF, wanted_BF)
    reconstructed_BD = acts_BF @ sae.W_dec + sae.b_dec
    if architecture == "skip_transcoder":
        reconstructed_BD = reconstructed_BD + x_BD @ parameters["W_skip"].t()
    torch.testing.assert_close(sae(x_BD), reconstructed_BD)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_training_picks_k_features_per_row_or_per_row_on_average(architecture: str) -> None:
    sae = _sae(architecture)
    result = sae.training_step(_rows(), StepContext())
    assert int(result.fired_F.sum()) <= 5 * B
    assert int(result.fired_F.sum()) >= 4.9 * B


def test_batchtopks_threshold_becomes_what_its_batches_need() -> None:
    sae = _sae("batchtopk")
    assert isinstance(sae, BatchTopKSAE)
    sae.threshold.zero_()
    for seed in range(60):
        sae.after_step_(sae.training_step(_rows(seed), StepContext()))
    fresh_BD = torch.cat([_rows(1000 + seed) for seed in range(50)])
    assert float((sae.encode(fresh_BD) > 0).sum(1).float().mean()) == pytest.approx(5, rel=0.05)


@pytest.mark.rest
def test_a_narrower_matryoshka_level_is_an_sae_of_its_own() -> None:
    """Trained, its first level alone reconstructs better than that of an SAE that was not asked to."""
    generator = torch.Generator().manual_seed(0)
    directions_GD = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)

    def rows(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(256, F, generator=generator) < 0.1).float() @ directions_GD

    errors = {}
    for architecture in ("batchtopk", "matryoshka"):
        sae = build_sae(SAEConfig(architecture=architecture, d_sae=F, k=4), D)
        adam = torch.optim.Adam(sae.parameters(), lr=3e-3)
        for seed in range(300):
            sae.after_step_(sae.training_step(rows(seed), StepContext()))
            adam.step()
            sae.normalize_decoder_()
        x_BD = rows(10_000)
        acts_BF = sae.encode(x_BD).detach()
        acts_BF[:, F // 8 :] = 0
        errors[architecture] = float((sae.decode(acts_BF) - x_BD).square().sum().detach())
    assert errors["matryoshka"] < 0.9 * errors["batchtopk"]


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_rescaling_keeps_the_function_of_raw_rows(architecture: str) -> None:
    sae, x_BD = _sae(architecture), _rows()
    before_BD = sae(x_BD * 2.0) / 2.0
    sae.rescale_(3.0 / 2.0)
    torch.testing.assert_close(sae(x_BD * 3.0) / 3.0, before_BD)


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_folding_gives_the_same_activations_and_reconstruction(architecture: str) -> None:
    sae, x_BD = _sae(architecture), _rows()
    scaling = InputScaling(0.37, torch.linspace(-1, 1, sae.d_in))
    raw = sae.folded(scaling)
    torch.testing.assert_close(raw.encode(x_BD), sae.encode(scaling.apply(x_BD)))
    torch.testing.assert_close(raw(x_BD), scaling.undo(sae(scaling.apply(x_BD))))


def test_projected_gradient_is_orthogonal_to_the_decoder_rows() -> None:
    sae = _sae("relu")
    sae.training_step(_rows(), StepContext(sparsity_coefficient=0.3))
    sae.project_decoder_gradient_()
    assert sae.W_dec.grad is not None
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    sae.normalize_decoder_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


@pytest.mark.parametrize("architecture", AUTOENCODERS)
def test_encoder_starts_as_the_transposed_decoder(architecture: str) -> None:
    sae = build_sae(SAEConfig.model_validate({"architecture": architecture, "d_sae": F, "k": 4}), D)
    assert torch.equal(sae.W_enc, sae.W_dec.t())
    assert sae.W_enc.shape == (D, F)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_a_wanted_l0_is_where_penalised_architectures_start(architecture: str) -> None:
    config = SAEConfig.model_validate({"architecture": architecture, "d_sae": 256, "target_l0": 8})
    sae = build_sae(config, D)
    rows_ND = torch.randn(4096, D, generator=torch.Generator().manual_seed(1))
    sae.start_(rows_ND, rows_ND)
    result = sae.training_step(rows_ND, StepContext())
    assert float(result.fired_F.sum()) / 4096 == pytest.approx(16, rel=0.1)


def test_every_feature_starts_at_the_wanted_rate() -> None:
    rows_ND, W_FD = torch.randn(2000, D), torch.nn.functional.normalize(torch.randn(F, D), dim=1)
    threshold_F = firing_quantile(rows_ND, W_FD, wanted_l0=4.0)
    rate_F = (rows_ND @ W_FD.t() > threshold_F).float().mean(0)
    torch.testing.assert_close(rate_F, torch.full((F,), 0.1), atol=0.002, rtol=0)


def test_a_transcoder_is_the_only_one_with_two_widths() -> None:
    config = SAEConfig(architecture="skip_transcoder", d_sae=F, k=4)
    assert build_sae(config, D, 7)(_rows()).shape == (B, 7)
    with pytest.raises(ValueError, match="reconstructs its input"):
        build_sae(SAEConfig(d_sae=F, k=4), D, 7)


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_sae(SAEConfig(d_sae=F, k=4), D)
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_changes_nothing_but_gradients() -> None:
    for architecture in AUTOENCODERS:
        sae = _sae(architecture)
        before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        sae.training_step(_rows(), StepContext(kernels=CompiledKernels(2)))
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, before[name]), (architecture, name)


@pytest.mark.parametrize("rows", [200, 20], ids=["more rows than columns", "fewer"])
def test_features_read_what_tells_their_row_from_the_others(rows: int) -> None:
    """Against (C + ridge)^-1 r and (C + ridge)^-1/2 r of the whole sign covariance, in float64."""
    generator = torch.Generator().manual_seed(4)
    spread_D = torch.logspace(1, -1, 30, dtype=torch.float64)
    input_ND = torch.randn(rows, 30, generator=generator, dtype=torch.float64) * spread_D
    row_FD = torch.nn.functional.normalize(input_ND[:8], dim=1)
    unit_ND = torch.nn.functional.normalize(input_ND, dim=1)
    covariance_DD = unit_ND.t() @ unit_ND / rows
    mean = covariance_DD.diagonal().mean()
    variance_D, axis_DD = torch.linalg.eigh(covariance_DD / mean)
    read_FD, write_FD = (
        row_FD @ (axis_DD * (variance_D.clamp_min(0) + RIDGE) ** -power) @ axis_DD.t()
        for power in (1.0, 0.5)
    )
    input_ND[rows // 2] *= 150  # how large a row is does not matter
    found_read_FD, found_write_FD = read_and_written(row_FD.float(), input_ND.float())
    torch.testing.assert_close(
        found_read_FD.double(), read_FD / read_FD.norm(dim=1).mean(), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        found_write_FD.double(), torch.nn.functional.normalize(write_FD), rtol=1e-3, atol=1e-3
    )
    own_F, others_NF = (row_FD * read_FD).sum(1), unit_ND @ read_FD.t()
    apart_F = own_F / others_NF.square().mean(0).sqrt()
    plain_F = 1.0 / (unit_ND @ row_FD.t()).square().mean(0).sqrt()
    assert (apart_F > plain_F).all()


def test_constant_rows_have_a_start_too() -> None:
    row_FD = torch.nn.functional.normalize(torch.randn(6, 10), dim=1)
    for found_FD in read_and_written(row_FD, torch.zeros(50, 10)):
        torch.testing.assert_close(found_FD, row_FD)


def test_fewer_features_than_columns_begin_at_rows_as_they_are() -> None:
    rows_ND = torch.randn(200, D) * torch.logspace(1, -1, D)
    for features, alike in ((D - 1, True), (D, False)):
        sae = build_sae(SAEConfig(d_sae=features, k=4), D)
        sae.start_directions_(rows_ND, rows_ND, torch.Generator().manual_seed(1))
        assert torch.equal(sae.W_enc.t(), sae.W_dec) is alike
