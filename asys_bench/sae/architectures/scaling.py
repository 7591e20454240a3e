"""What an SAE sees of a raw row: `scale * (x - center)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch


class RowScaling(ABC):
    """The affine map from a trainer's raw rows to an SAE's own units, and back for what it outputs.

    It is folded into the weights on export, so that a checkpoint takes raw rows.
    """

    scale: float
    """Of the rows that the SAE reconstructs."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, InputScaling]:
        """What it is made of; names are suffixes of the entries in a trainer's state."""

    @abstractmethod
    def with_parts(self, parts: Mapping[str, InputScaling]) -> Self:
        """One of the same kind, made of these."""

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
    def parts(self) -> dict[str, InputScaling]:
        return {"": self}

    def with_parts(self, parts: Mapping[str, InputScaling]) -> InputScaling:
        return parts[""]

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
    def parts(self) -> dict[str, InputScaling]:
        return {"": self.input, "_out": self.output}

    def with_parts(self, parts: Mapping[str, InputScaling]) -> PairScaling:
        return PairScaling(parts[""], parts["_out"])

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.output.scale

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _side_by_side((self.input, self.output))

    def undo(self, x_BD: torch.Tensor) -> torch.Tensor:
        return self.output.undo(x_BD)


@dataclass(frozen=True, slots=True)
class JointScaling(RowScaling):
    """For crosscoders, whose rows are those of several hooks on end: one scaling for each."""

    hooks: tuple[InputScaling, ...]

    @classmethod
    def identity(cls, widths: Sequence[int]) -> JointScaling:
        return cls(tuple(InputScaling.identity(width) for width in widths))

    @property
    def parts(self) -> dict[str, InputScaling]:
        return {f"_{index}": hook for index, hook in enumerate(self.hooks)}

    def with_parts(self, parts: Mapping[str, InputScaling]) -> JointScaling:
        return JointScaling(tuple(parts[f"_{index}"] for index in range(len(self.hooks))))

    @property
    def scale(self) -> float:  # type: ignore[override]
        """The hooks' mean; a number to look at, since each has its own."""
        return sum(hook.scale for hook in self.hooks) / len(self.hooks)

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        return _side_by_side(self.hooks)

    def undo(self, x_BD: torch.Tensor) -> torch.Tensor:
        center_D, scale_D = self.columns
        return x_BD / scale_D + center_D


def _side_by_side(parts: Sequence[InputScaling]) -> tuple[torch.Tensor, torch.Tensor]:
    columns = [part.columns for part in parts]
    return torch.cat([center for center, _ in columns]), torch.cat([scale for _, scale in columns])
