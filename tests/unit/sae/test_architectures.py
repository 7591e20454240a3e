"""The two architectures, their gradients and the decoder's norm."""

import pytest
import torch

from asys_bench.sae import ARCHITECTURES, SAEConfig, SparseAutoencoder, StepContext, build_sae
from asys_bench.sae.scaling import InputScaling

D, F, B = 12, 40, 64


def _sae(architecture: str, dtype: str = "float32") -> SparseAutoencoder:
    config = SAEConfig.model_validate(
        {"architecture": architecture, "d_sae": F, "k": 5, "aux_k": 3, "dtype": dtype}
    )
    sae = build_sae(config, D)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1, generator=generator)
        sae.b_dec.normal_(std=0.1, generator=generator)
        sae.W_enc += 0.1 * torch.randn(D, F, generator=generator)
    return sae


def _rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_encode_follows_the_equation(architecture: str) -> None:
    sae, x_BD = _sae(architecture), _rows()
    pre_BF = torch.relu((x_BD - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    acts_BF = sae.encode(x_BD).detach()
    for pre_F, acts_F in zip(pre_BF, acts_BF, strict=True):
        keep = pre_F.topk(5).indices if architecture == "topk" else torch.arange(F)
        want_F = torch.zeros(F)
        want_F[keep] = pre_F[keep]
        assert torch.equal(acts_F, want_F)
    torch.testing.assert_close(sae(x_BD), acts_BF @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize("dead", [None, [1, 7, 8, 30], [2]])
@pytest.mark.parametrize("weighted", [False, True])
def test_handwritten_topk_gradient_equals_autograd(dead: list[int] | None, weighted: bool) -> None:
    sae, x_BD = _sae("topk"), _rows()
    weight_B = torch.rand(B, generator=torch.Generator().manual_seed(9)) + 0.1
    context = StepContext(
        weight_B=weight_B if weighted else None,
        dead_F=None if dead is None else torch.tensor(dead),
    )
    by_hand = sae.training_step(x_BD, context)
    grads = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    by_autograd = SparseAutoencoder.training_step(sae, x_BD, context)
    assert by_hand.loss == pytest.approx(by_autograd.loss, rel=1e-5)
    assert by_hand.error == pytest.approx(by_autograd.error, rel=1e-5)
    assert torch.equal(by_hand.fired_F, by_autograd.fired_F)
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_selection_keeps_exact_values_of_what_it_selects() -> None:
    x_BD = _rows()
    exact, rough = _sae("topk"), _sae("topk", "bfloat16")
    a = exact.training_step(x_BD, StepContext())
    b = rough.training_step(x_BD, StepContext())
    assert b.error == pytest.approx(a.error, rel=0.01)
    assert rough.W_dec.grad is not None
    assert rough.W_dec.grad.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rescaling_keeps_the_function_of_raw_rows(architecture: str) -> None:
    sae, x_BD = _sae(architecture), _rows()
    before_BD = sae(x_BD * 2.0) / 2.0
    sae.rescale_(3.0 / 2.0)
    torch.testing.assert_close(sae(x_BD * 3.0) / 3.0, before_BD)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_gives_the_same_activations_and_reconstruction(architecture: str) -> None:
    sae, x_BD = _sae(architecture), _rows()
    scaling = InputScaling(0.37, torch.linspace(-1, 1, sae.d_in))
    raw = sae.folded(scaling)
    torch.testing.assert_close(raw.encode(x_BD), sae.encode(scaling.apply(x_BD)))
    torch.testing.assert_close(raw(x_BD), scaling.undo(sae(scaling.apply(x_BD))))


def test_projected_gradient_is_orthogonal_to_the_decoder_rows() -> None:
    sae = _sae("relu")
    sae.training_step(_rows(), StepContext(l1_coefficient=0.3))
    sae.project_decoder_gradient_()
    assert sae.W_dec.grad is not None
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    sae.normalize_decoder_()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


def test_encoder_starts_as_the_transposed_decoder() -> None:
    sae = build_sae(SAEConfig(d_sae=F, k=4), D)
    assert torch.equal(sae.W_enc, sae.W_dec.t())
    assert sae.W_enc.shape == (D, F)


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_sae(SAEConfig(d_sae=F, k=4), D)
    assert torch.equal(before, torch.get_rng_state())
