"""An SAE at its place in a model: its rows, and the interventions that it is compared with.

Rows that the SAE leaves alone (`outliers`: attention sinks) are measured both ways. `passed`: they keep
the model's own values in all three interventions. `replaced`: the SAE and the ablations replace every row.
Taking the sinks away ruins most models whatever happens to the other rows, so only `passed` compares the
SAE with an ablation of the rows that it is for.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.evaluation.reconstruction import (
    PositionMeter,
    ReconstructionMeter,
    ReconstructionReport,
)
from asys_bench.sae.evaluation.splice import Keep, Place, Reconstruct, mean_ablation, zero_ablation

MOST_CODES = 1 << 25
"""Activations of one piece of a batch: 128 MiB of float32."""


@dataclass(frozen=True)
class Subject:
    """An SAE of raw rows and the place that it was trained at."""

    place: Place
    sae: SparseAutoencoder


@dataclass(frozen=True, slots=True)
class RowsFound:
    """One SAE's rows in a model: how well it reconstructs them."""

    report: ReconstructionReport
    mean_D: torch.Tensor
    """float64[D]: of the rows without outliers."""
    fvu_by_position: list[float | None]
    """From the first token of a sequence on, outliers left out; empty where rows are no tokens."""


def add_rows(
    sae: SparseAutoencoder,
    meter: ReconstructionMeter,
    positions: PositionMeter,
    rows: torch.Tensor,
    mask_BT: torch.Tensor | None,
) -> None:
    """Measure rows float32[..., D]; of padding none, where they are the tokens of `mask_BT`."""
    if rows.shape[-1] != sae.d_in:
        raise ValueError(f"rows are {rows.shape[-1]} wide, and the SAE takes {sae.d_in}")
    rows_ND, at_N = rows.reshape(-1, rows.shape[-1]), None
    if mask_BT is not None and len(rows_ND) == mask_BT.numel():
        real_N = mask_BT.reshape(-1).bool().to(rows_ND.device)
        at_N = torch.arange(mask_BT.shape[1]).expand(mask_BT.shape).reshape(-1)[real_N.cpu()]
        rows_ND = rows_ND[real_N]
    piece = max(1, MOST_CODES // sae.d_sae)
    for first in range(0, len(rows_ND), piece):
        x_BD = rows_ND[first : first + piece]
        acts_BF = sae.encode(x_BD)
        x_hat_BD, outlying_B = sae.reconstruct(x_BD, acts_BF), sae.outlying(x_BD)
        meter.update(x_BD, x_hat_BD, acts_BF, outlying_B=outlying_B)
        if at_N is not None:
            usual_B = torch.ones(len(x_BD), dtype=torch.bool) if outlying_B is None else ~outlying_B
            at_B = at_N[first : first + piece][usual_B.cpu()]
            positions.update(at_B, x_BD[usual_B].cpu(), x_hat_BD[usual_B].cpu())


def found_rows(name: str, meter: ReconstructionMeter, positions: PositionMeter) -> RowsFound:
    """What was measured. Raises ValueError: nothing was."""
    try:
        report = meter.report()
    except ValueError:
        raise ValueError(f"{name}: its module was not called, so it has no rows") from None
    return RowsFound(report, meter.mean_D, positions.fvu_by_position(report.fvu))


@dataclass(frozen=True)
class Plan:
    """One intervention. mode: `passed` or `replaced`. kind: `spliced`, `zero` or `mean`."""

    mode: str
    kind: str
    reconstruct: Reconstruct
    keep: Keep
    """Rows that stay as they are."""


def interventions(sae: SparseAutoencoder, mean_D: torch.Tensor) -> list[Plan]:
    """Those of one SAE, per mode in the order spliced, zero, mean; `replaced` first."""
    every = copy.copy(sae)
    every.outlier_norm = math.inf
    modes: list[tuple[str, SparseAutoencoder, Keep]] = [("replaced", every, lambda rows_BD: None)]
    if math.isfinite(sae.outlier_norm):
        modes.append(("passed", sae, sae.outlying))
    return [
        Plan(mode, kind, made, keep)
        for mode, spliced, keep in modes
        for kind, made in (
            ("spliced", spliced), ("zero", zero_ablation), ("mean", mean_ablation(mean_D)),
        )
    ]  # fmt: skip
