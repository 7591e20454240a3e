"""Directions that an SAE leaves over: many rows' residuals share one, and no feature reads it.

A feature that is rare, or began late, may be in no decoder row: each row that has it then has it in its
residual r = x - x_hat. Rows with the largest residuals are put together where these point the same way,
the largest group first, and the direction of a group is fitted to the rows that have it, as in spherical
k-means (Dhillon and Modha 2001, "Concept decompositions for large sparse text data"). What the rows have of
it is taken away, and the rows with the largest residuals are then others. A direction fires where r . d is
at least half of what it usually is there.

Which rows are taken and what is fitted does not depend on the order of the rows. So the null of permuted
blocks (`statistics`) holds for these directions as for the features, and they are judged together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from asys_bench.change.timeline.firing import CHUNK_ROWS, Firing, Residuals

POOL_ROWS, WORST_ROWS, ROUNDS = 8192, 2048, 2
"""Rows with the largest residuals; of these so many are compared with each other, M^2 D multiplications, and
what they share is taken away, so often."""
LARGE = 1.5
"""Times the median of all rows' residuals: smaller ones are noise, of which in few dimensions many rows
point the same way by chance."""
MOST_DIRECTIONS = 64
LEAST_ROWS = 8
"""Of a group: fewer are no birth, whatever they share."""
NEAR_COSINE = 0.6
"""Of two residuals of one group. Two rows with one feature left over and noise of half its energy are at 2/3;
in 128 dimensions residuals that have nothing in common reach 0.45 once in 1e6 pairs."""
FITS = 3
FIRES_FROM = 0.5
"""Of the group's mean strength."""
READ_COSINE = 0.8
"""Of a direction and a feature's, of either sign, from which that feature is only stronger or weaker than it
should be: the penalty of an SAE shrinks all of them. What one feature reads of two is left of both, with
either sign."""
LEAST_USE = 0.01
"""Of the squared size of the rows that have it: less is a rounding of what the SAE does read."""


@dataclass(frozen=True)
class LeftOver:
    """C directions of unit length, and how strongly rows have each where they have it."""

    direction_CD: torch.Tensor
    strength_C: torch.Tensor

    def __len__(self) -> int:
        return len(self.strength_C)

    def with_new(self, new: LeftOver, read_C: torch.Tensor) -> LeftOver:
        """And those of `new` that no feature reads and that are not among them."""
        direction_CD, strength_C = self.direction_CD, self.strength_C
        for direction_D, usual in zip(
            new.direction_CD[~read_C], new.strength_C[~read_C], strict=True
        ):
            if not bool((direction_CD @ direction_D >= READ_COSINE).any()):
                direction_CD = torch.cat([direction_CD, direction_D.unsqueeze(0)])
                strength_C = torch.cat([strength_C, usual.unsqueeze(0)])
        return LeftOver(direction_CD, strength_C)


@torch.no_grad()
def left_over(residuals: Residuals, W_dec_FD: torch.Tensor, fires_F: torch.Tensor) -> LeftOver:
    """Directions in the residuals of all rows. W_dec: what features write, of any length; those that never
    fire (bool[F]) read nothing."""
    pool = torch.topk(residuals.error_N, min(POOL_ROWS, len(residuals.error_N)), sorted=False)
    rows_PD = residuals.rows_ND[pool.indices].float()
    square_P = residuals.square_N[pool.indices].clamp_min(1e-12)
    length_F = torch.linalg.vector_norm(W_dec_FD, dim=1).clamp_min(1e-12)
    least = LARGE * float(residuals.error_N.median().sqrt()) if len(rows_PD) else 0.0
    found = LeftOver(rows_PD[:0], rows_PD[:0, 0])
    for _ in range(ROUNDS):
        new = _taken_away(rows_PD, square_P, least)
        if not len(new):
            break
        cosine_FC = (W_dec_FD @ new.direction_CD.t()) / length_F.unsqueeze(1)
        is_read_FC = (cosine_FC.abs() >= READ_COSINE) & fires_F.unsqueeze(1)
        before = len(found)
        found = found.with_new(new, is_read_FC.any(0))
        if len(found) == before or len(found) >= MOST_DIRECTIONS:
            break
    return LeftOver(found.direction_CD[:MOST_DIRECTIONS], found.strength_C[:MOST_DIRECTIONS])


def _taken_away(rows_PD: torch.Tensor, square_P: torch.Tensor, least: float) -> LeftOver:
    """What the largest of these residuals share; the rows that have it are without it afterwards."""
    direction, strength = [rows_PD[:0]], [rows_PD[:0, 0]]
    for direction_D, usual in _groups(_worst(rows_PD, least)):
        value_P = rows_PD @ direction_D
        has = (value_P >= FIRES_FROM * usual).nonzero()[:, 0]
        rows_PD[has] -= value_P[has].unsqueeze(1) * direction_D
        if float((value_P[has].square() / square_P[has]).mean()) >= LEAST_USE:
            direction.append(direction_D.unsqueeze(0))
            strength.append(usual.unsqueeze(0))
    return LeftOver(torch.cat(direction), torch.cat(strength))


def _worst(rows_PD: torch.Tensor, least: float) -> torch.Tensor:
    """The rows with the largest norms, of those above `least`."""
    norm_P = torch.linalg.vector_norm(rows_PD, dim=1)
    norm_M, worst_M = torch.topk(norm_P, min(WORST_ROWS, len(norm_P)), sorted=False)
    return rows_PD[worst_M[norm_M > least]]


def _groups(rows_MD: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(direction, mean strength) of each group of rows that point the same way, the largest first."""
    unit_MD = torch.nn.functional.normalize(rows_MD, dim=1)
    near_MM = (unit_MD @ unit_MD.t()).ge_(NEAR_COSINE)
    free_M = torch.ones(len(rows_MD))
    count_M = near_MM.sum(1)
    while len(rows_MD):
        best = int((count_M * free_M).argmax())
        if float(count_M[best] * free_M[best]) < LEAST_ROWS:
            return
        own_M = (near_MM[best] * free_M) > 0
        direction_D, has_M = _fitted(rows_MD, unit_MD, own_M)
        gone_M = (own_M | has_M) * free_M
        count_M = count_M - near_MM @ gone_M
        free_M = free_M - gone_M
        if int(has_M.sum()) >= LEAST_ROWS:
            yield direction_D, (rows_MD[has_M] @ direction_D).mean()


def _fitted(
    rows_MD: torch.Tensor, unit_MD: torch.Tensor, own_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the direction of a group that begins with these rows, which rows have it in the end)."""
    direction_D = torch.nn.functional.normalize(rows_MD[own_M].sum(0), dim=0)
    for _ in range(FITS):
        own_M = unit_MD @ direction_D >= NEAR_COSINE
        direction_D = torch.nn.functional.normalize(rows_MD[own_M].sum(0), dim=0)
    return direction_D, own_M


@torch.no_grad()
def firing_of(left: LeftOver, residuals: Residuals) -> Firing:
    """In which rows each direction fires, as `firing` says it of features."""
    row, which, value = [], [], []
    for first in range(0, len(residuals.rows_ND) if len(left) else 0, CHUNK_ROWS):
        rows_BD = residuals.rows_ND[first : first + CHUNK_ROWS].float()
        value_BC = rows_BD @ left.direction_CD.t()
        row_K, which_K = (value_BC >= FIRES_FROM * left.strength_C).nonzero(as_tuple=True)
        row.append(row_K + first)
        which.append(which_K)
        value.append(value_BC[row_K, which_K])
    if not row:
        return Firing.nothing(len(left), len(residuals.rows_ND))
    which_N, order_N = torch.cat(which).sort(stable=True)
    row_N, value_N = torch.cat(row)[order_N], torch.cat(value)[order_N]
    gain_N = value_N.square() / residuals.square_N[row_N].clamp_min(1e-12)
    total_C = np.bincount(which_N.numpy(), minlength=len(left))
    return Firing(
        np.r_[0, np.cumsum(total_C)].astype(np.int64),
        row_N.to(torch.int32).numpy(),
        value_N.numpy(),
        gain_N.numpy(),
        len(residuals.rows_ND),
    )
