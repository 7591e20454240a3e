"""The hand-written step of every architecture against autograd of its loss, in float64.

With float64 the kernels are torch's operators; that the compiled ones compute the same is
test_sparse_kernels.py's business, and the float32 test below that they are put together rightly.
"""

import pytest
import torch

from asys_bench.sae import (
    ARCHITECTURES,
    SAEConfig,
    SparseAutoencoder,
    StepContext,
    build_sae,
)
from asys_bench.sae.architectures.jumprelu import JumpReLUSAE
from asys_bench.sae.kernels.compiled_kernels import CompiledKernels

D, F, B, D_OUT = 12, 40, 64, 9


def make_sae(architecture: str, dtype: torch.dtype = torch.float64) -> SparseAutoencoder:
    """An SAE away from its start: every parameter random, a few features dead."""
    split = {"hook_widths": (5, D - 5)} if architecture == "crosscoder" else {}
    config = SAEConfig.model_validate(
        {"architecture": architecture, "d_sae": F, "k": 5, "aux_k": 3, "bandwidth": 0.7, **split}
    )
    sae = build_sae(config, D, D_OUT if architecture == "skip_transcoder" else None).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "W_dec":
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.2 * noise.to(dtype)
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.abs_().add_(1.6)
        elif sae.config.resolved_dead_policy == "resample":
            sae.encoder_bias.sub_(1.5)  # sparse enough for the sparse path
    return sae


def make_rows(dtype: torch.dtype = torch.float64, width: int = D, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, width, generator=generator, dtype=torch.float64).to(dtype)


def make_context(
    architecture: str, dtype: torch.dtype, weighted: bool, dead: list[int] | None
) -> StepContext:
    weight_B = torch.rand(B, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.1
    return StepContext(
        weight_B=weight_B.to(dtype) if weighted else None,
        dead_F=None if dead is None else torch.tensor(dead),
        sparsity_coefficient=0.3,
        target_BD=make_rows(dtype, D_OUT, 5) if architecture == "skip_transcoder" else None,
        kernels=CompiledKernels(2),
    )


def _both(
    sae: SparseAutoencoder, x_BD: torch.Tensor, context: StepContext, rtol: float, atol: float
) -> None:
    by_hand = sae.training_step(x_BD, context)
    error_B, fired_F = by_hand.error_B.clone(), by_hand.fired_F.clone()
    grads = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    by_autograd = SparseAutoencoder.training_step(sae, x_BD, context)
    assert by_hand.loss == pytest.approx(by_autograd.loss, rel=rtol)
    assert by_hand.error == pytest.approx(by_autograd.error, rel=rtol)
    assert torch.equal(fired_F, by_autograd.fired_F)
    torch.testing.assert_close(error_B, by_autograd.error_B, rtol=rtol, atol=atol)
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            grads[name],
            parameter.grad,
            rtol=rtol,
            atol=atol,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("dead", [None, [1, 7, 8, 30], [2]])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_handwritten_gradient_is_autograds(
    architecture: str, weighted: bool, dead: list[int] | None
) -> None:
    sae = make_sae(architecture)
    context = make_context(architecture, torch.float64, weighted, dead)
    _both(sae, make_rows(), context, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_compiled_step_is_autograds_in_float32(architecture: str) -> None:
    sae = make_sae(architecture, torch.float32)
    context = make_context(architecture, torch.float32, True, [1, 7, 8, 30])
    _both(sae, make_rows(torch.float32), context, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_the_sparse_path_is_the_one_that_was_tested(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dense(*arguments: object) -> None:
        raise AssertionError("took the dense path")

    monkeypatch.setattr(SparseAutoencoder, "training_step", dense)
    make_sae(architecture).training_step(
        make_rows(), make_context(architecture, torch.float64, False, None)
    )


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_a_batch_that_is_not_sparse_takes_the_dense_path(architecture: str) -> None:
    sae = make_sae(architecture)
    with torch.no_grad():
        sae.encoder_bias.add_(30.0)
        if architecture == "gated":
            sae.get_parameter("b_mag").add_(30.0)
    result = sae.training_step(make_rows(), make_context(architecture, torch.float64, False, None))
    assert int(result.fired_F.sum()) > 0.9 * B * F


def test_jumprelu_thresholds_move_by_the_papers_estimators() -> None:
    """Equations 11 and 12 of arXiv:2407.14435, spelled out element by element."""
    sae = make_sae("jumprelu")
    assert isinstance(sae, JumpReLUSAE)
    x_BD, coefficient = make_rows(), 0.3
    sae.training_step(x_BD, make_context("jumprelu", torch.float64, False, None))
    assert sae.threshold.grad is not None
    bandwidth = sae.config.bandwidth
    with torch.no_grad():
        pre_BF = (x_BD - sae.b_dec) @ sae.W_enc + sae.b_enc
        acts_BF = pre_BF * (pre_BF > sae.threshold)
        residual_BD = acts_BF @ sae.W_dec + sae.b_dec - x_BD
        near_BF = ((pre_BF - sae.threshold) / bandwidth).abs() < 0.5
        slope_BF = 2 * residual_BD @ sae.W_dec.t()
        wanted_F = torch.zeros(F, dtype=torch.float64)
        for row in range(B):
            for feature in range(F):
                if near_BF[row, feature]:
                    theta = float(sae.threshold[feature])
                    jump = -theta / bandwidth * float(slope_BF[row, feature])
                    wanted_F[feature] += jump - coefficient / bandwidth
    torch.testing.assert_close(sae.threshold.grad, wanted_F / (B * D))


def test_a_differentiable_architecture_agrees_with_finite_differences() -> None:
    """Autograd of the loss is itself right where the loss is smooth (TopK's choice held fixed)."""
    sae = make_sae("topk")
    context = make_context("topk", torch.float64, True, None)
    x_BD = make_rows()
    sae.training_step(x_BD, context)
    assert sae.W_dec.grad is not None
    gradient_FD, step = sae.W_dec.grad.clone(), 1e-6
    for feature, column in ((0, 0), (7, 3), (21, 11)):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                sae.W_dec[feature, column] += sign * step
                losses.append(float(sae.loss(x_BD, context)[0]))
                sae.W_dec[feature, column] -= sign * step
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(float(gradient_FD[feature, column]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_what_features_make_is_what_the_loss_adds_to_the_rest(
    architecture: str, dtype: torch.dtype
) -> None:
    sae, x_BD = make_sae(architecture, dtype), make_rows(dtype)
    context = make_context(architecture, dtype, weighted=False, dead=None)
    *_, acts_BF = sae.loss(x_BD, context)
    wanted_BD = sae.reconstruct(x_BD, acts_BF) - sae.without_features(x_BD)
    assert wanted_BD.abs().max() > 1
    found_BD = sae.features_make(x_BD, context.kernels)
    torch.testing.assert_close(found_BD, wanted_BD, rtol=1e-5, atol=1e-5)
