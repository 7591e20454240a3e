"""What an SAE sees of a raw row: `scale * (x - center)`."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class InputScaling:
    """The affine map from raw rows to the SAE's own units, and back.

    It is folded into the weights on export, so that a checkpoint takes raw rows.
    """

    scale: float
    center_D: torch.Tensor

    @classmethod
    def identity(cls, d_in: int) -> InputScaling:
        return cls(1.0, torch.zeros(d_in))

    def apply(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """Raw rows in the SAE's units."""
        return (rows_BD - self.center_D) * self.scale

    def undo(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Back to raw rows."""
        return x_BD / self.scale + self.center_D
