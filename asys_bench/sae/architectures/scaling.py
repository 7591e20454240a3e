"""What an SAE sees of a raw row: `scale * (x - center)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


class RowScaling(ABC):
    """The affine map from a trainer's raw rows to an SAE's own units, and back for what it outputs.

    It is folded into the weights on export, so that a checkpoint takes raw rows.
    """

    scale: float
    """Of the rows that the SAE reconstructs."""

    @property
    @abstractmethod
    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(center, scale) of each column of a row, float32."""

    @abstractmethod
    def undo(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Reconstructions in the SAE's units as raw rows."""

    def apply(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """Raw rows in the SAE's units."""
        center_D, scale_D = self.columns
        return (rows_BD - center_D) * scale_D


@dataclass(frozen=True, slots=True)
class InputScaling(RowScaling):
    """One centre and one scale for rows that are both input and target."""

    scale: float
    center_D: torch.Tensor

    @classmethod
    def identity(cls, d_in: int) -> InputScaling:
        return cls(1.0, torch.zeros(d_in))

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.center_D, torch.full_like(self.center_D, self.scale)

    def undo(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD / self.scale + self.center_D


@dataclass(frozen=True, slots=True)
class PairScaling(RowScaling):
    """For transcoders, whose rows are an input and its output on end: one scaling for each."""

    input: InputScaling
    output: InputScaling

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.output.scale

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        both = (self.input.columns, self.output.columns)
        return torch.cat([center for center, _ in both]), torch.cat([scale for _, scale in both])

    def undo(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.output.undo(x_BD)
