"""What goes into a training step besides its rows, and what comes out besides gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from asys_bench.sae.kernels.sparse_kernels import SparseKernels


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a training step needs besides its rows."""

    weight_B: torch.Tensor | None = None
    """How many rows each row stands for (1 / sampling rate); None: all alike."""
    dead_F: torch.Tensor | None = None
    """Features (int64 indices) that AuxK shall revive; None: none."""
    sparsity_coefficient: float = 0.0
    """Weight of the L1 (relu, gated) or L0 (jumprelu) penalty."""
    target_BD: torch.Tensor | None = None
    """What is to be reconstructed (transcoders); None: the rows themselves."""
    kernels: SparseKernels = field(default_factory=SparseKernels)

    def row_share(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Each row's share of the batch loss, summing to 1."""
        if self.weight_B is None:
            return x_BD.new_full((x_BD.shape[0],), 1.0 / x_BD.shape[0])
        return self.weight_B / self.weight_B.sum()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a training step found; gradients are in the parameters."""

    loss: float
    """Everything that was minimised, in units of ||s x||^2 / D."""
    error: float
    """Reconstruction part: weighted mean of ||s x - s x_hat||^2 / D."""
    error_B: torch.Tensor
    """||s x - s x_hat||^2 of each row; overwritten by the next step."""
    fired_F: torch.Tensor
    """int64: rows of the batch in which each feature was active."""
    least_active: float = 0.0
    """The smallest positive activation (architectures that learn a threshold from it); 0: none."""
