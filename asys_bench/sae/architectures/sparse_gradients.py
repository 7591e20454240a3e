"""The last part of a hand-written step, the same for all architectures: weight gradients from
the gradients of the pairs.

    d W_dec[f] = sum over f's pairs of value_bf g_b          g_b = d loss / d x_hat_b
    d W_enc[f] = sum over f's pairs of p_bf input_b          p_bf = d loss / d pre_bf
    d b_enc[f] = sum over f's pairs of p_bf
    d b_dec    = sum_b g_b - d b_enc W_enc^T                 for encoders that see x - b_dec
"""

from __future__ import annotations

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.kernels.sparse_codes import FeatureMajor, SparseCodes
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.ranks import Ranks


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """`.grad`, made (uninitialised, in the parameter's layout) when it is not there."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def set_weight_gradients(
    sae: SparseAutoencoder,
    kernels: SparseKernels,
    ranks: Ranks,
    groups: FeatureMajor,
    *,
    value_N: torch.Tensor,
    pre_gradient_N: torch.Tensor,
    out_gradient_BD: torch.Tensor,
    input_BD: torch.Tensor,
    out_gradient_sum_D: torch.Tensor | None = None,
    shift_F: torch.Tensor | None = None,
) -> torch.Tensor:
    """Set the gradients of W_enc, W_dec and b_dec; returns those of the pre-activations, summed [F].

    out_gradient_BD, shift_F: [M B, D] with a feature's level times B, for nested prefixes;
    out_gradient_sum_D then is the sum over rows of the first level's.
    """
    W_enc_FD = sae.W_enc.detach().t()
    kernels.accumulate(groups, value_N, out_gradient_BD, gradient_of(sae.W_dec), shift_F)
    pre_sum_F = kernels.accumulate(groups, pre_gradient_N, input_BD, gradient_of(sae.W_enc).t())
    b_dec_grad_D = out_gradient_BD.sum(0) if out_gradient_sum_D is None else out_gradient_sum_D
    if sae.subtracts_b_dec:
        b_dec_grad_D = b_dec_grad_D - ranks.over_latents(pre_sum_F @ W_enc_FD)
    gradient_of(sae.b_dec).copy_(b_dec_grad_D)
    return pre_sum_F


def fired(codes: SparseCodes, active_N: torch.Tensor) -> torch.Tensor:
    """int64[F]: rows in which each feature is active."""
    return torch.bincount(codes.feature_N[active_N], minlength=codes.d_sae)
