"""Crosscoder: one set of features for the rows of several hook points.

    x     = [x_1 | ... | x_n]                     each hook's row in units of its own (`JointScaling`)
    f(x)  = BatchTopK(ReLU(W_enc^T (x - b_dec) + b_enc))
    x_hat = W_dec^T f(x) + b_dec                  W_dec = [W_dec_1 | ... | W_dec_n]
    L     = ||x - x_hat||^2 / D  +  AuxK for dead features (see `auxk`)

Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing" (Transformer
Circuits, October 2024): one encoder reads all hooks and a decoder per hook writes each. Sparsity is
BatchTopK's, as Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders" (arXiv:2504.02922)
choose it: an L1 penalty shrinks the part of a feature that one hook needs less, so that features look
private which are shared. A feature's decoder has unit norm over all hooks together (the first paper's
"L2-of-norms" version), so a feature of one hook and one of all compete for a row's k on equal terms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import torch

from asys_bench.sae.architectures.batchtopk import BatchTopKSAE, trained_k
from asys_bench.sae.architectures.scaling import RowScaling
from asys_bench.sae.config import SAEConfig


class Crosscoder(BatchTopKSAE):
    """Rows are [x_1 | ... | x_n], and `config.hook_widths` says how wide each hook's part is."""

    name: ClassVar[str] = "crosscoder"
    saelens_name: ClassVar[str] = "asys_crosscoder"
    """No peer has a format for it; the folder is documented in `checkpoint.native_format`."""
    reads_saelens: ClassVar[bool] = True

    def __init__(self, d_in: int, config: SAEConfig, d_out: int | None = None) -> None:
        widths = config.hook_widths
        if widths is None or sum(widths) != d_in:
            raise ValueError(
                f"a crosscoder of rows of width {d_in} needs hook_widths that add up to it, not "
                f"{None if widths is None else list(widths)}"
            )
        super().__init__(d_in, config, d_out)
        self.parts = tuple(slice(a, b) for a, b in pairwise(accumulate(widths, initial=0)))

    @property
    def decoder_shares(self) -> torch.Tensor:
        """float32[n, F]: what share of a feature's squared decoder norm each hook has; columns add up
        to 1. Near 1/n everywhere: shared by all hooks; near 1 in one place: private to that hook.

        Of an SAE in its own units (before `folded`); raw hooks of different scales are not compared.
        """
        square_FD = self.W_dec.detach().square()
        share_nF = torch.stack([square_FD[:, part].sum(1) for part in self.parts])
        return share_nF / share_nF.sum(0).clamp_min(1e-24)

    @torch.no_grad()
    def folded(self, scaling: RowScaling) -> Self:
        """A copy that acts on raw rows: as `SparseAutoencoder.folded`, column by column."""
        raw = copy.deepcopy(self)
        raw.zero_grad(set_to_none=True)
        _, scale_D = scaling.columns
        raw.W_enc.mul_(scale_D.unsqueeze(1))
        raw.W_dec.div_(scale_D)
        raw.b_dec.copy_(scaling.undo(raw.b_dec))
        return raw

    def saelens_fields(self) -> dict[str, Any]:
        return {"hook_widths": list(self.config.hook_widths or ())}

    @classmethod
    def config_from_saelens(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        return {"k": trained_k(cfg), "hook_widths": tuple(cfg["hook_widths"])}
