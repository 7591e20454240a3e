"""What the run's linear probes read in each feature (`rundir.probes`, written by a sink `probe`).

A feature that fires with its mean activation m moves a probe's logits by m (W_dec w): its decoder row through
the probe's weights. A probe of the SAE's own features has a weight for each: m w. Of several classes the
logit that is moved furthest from the mean of all counts. A feature's probe is the one, among those with a
held-out AUC, that it moves most; a feature that moves none by `LEAST` has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.eye.features import Document, Floats
from asys_bench.eye.watch import plain
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.probes import ACTIVATIONS, FoundProbe, read_probes
from asys_bench.sae.architectures.base import SparseAutoencoder

LEAST = 0.1
SHOWN = 10


@dataclass(frozen=True)
class ProbeLinks:
    """Probes of one hook, and by how much each feature moves each of them: effect_PF, signed."""

    probes: Sequence[FoundProbe]
    effect_PF: npt.NDArray[np.float32]

    def columns(self) -> dict[str, list[float | None]]:
        """Of each feature the AUC of its probe, the number of that probe and by how much it is moved."""
        auc_P = np.array([p.value if p.metric == "auc" else math.nan for p in self.probes])
        size_PF = np.where(np.isfinite(auc_P)[:, None], np.abs(self.effect_PF), 0.0)
        best_F = size_PF.argmax(0)
        there_F = size_PF.max(0) >= LEAST
        effect_F = np.take_along_axis(self.effect_PF, best_F[None], 0)[0]
        rows: list[tuple[float | None, float | None, float | None]] = [
            (plain(float(auc_P[best])), best, plain(float(effect_F[feature])))
            if there_F[feature]
            else (None, None, None)
            for feature, best in enumerate(best_F.tolist())
        ]
        names = ("probe", "probe_of", "probe_effect")
        return {name: [row[at] for row in rows] for at, name in enumerate(names)}

    def labels(self) -> list[str]:
        return [probe.label for probe in self.probes]

    def of(self, feature: int) -> list[Document]:
        """The probes that a feature moves, the furthest first."""
        effect_P = self.effect_PF[:, feature]
        order = np.argsort(-np.abs(effect_P), kind="stable")[:SHOWN].tolist()
        return [
            {
                "label": self.probes[number].label,
                "metric": self.probes[number].metric,
                "value": plain(self.probes[number].value),
                "effect": plain(float(effect_P[number])),
            }
            for number in order
            if abs(float(effect_P[number])) >= LEAST
        ]


def probe_links(
    run_dir: Path, hook: str, sae: SparseAutoencoder, mean_F: Floats
) -> ProbeLinks | None:
    """Of an SAE's features, whose mean activations are mean_F; None: no probe of the hook reads them."""
    try:
        found = read_probes(run_dir).get(hook, [])
    except (ReadingError, OSError):
        return None
    links = [
        (probe, effect_F)
        for probe in found
        if (effect_F := _effect(probe, sae, mean_F)) is not None
    ]
    if not links:
        return None
    return ProbeLinks([probe for probe, _ in links], np.stack([effect_F for _, effect_F in links]))


@torch.no_grad()
def _effect(
    probe: FoundProbe, sae: SparseAutoencoder, mean_F: Floats
) -> npt.NDArray[np.float32] | None:
    weight_CX = probe.weight
    if weight_CX is None or weight_CX.ndim != 2 or not bool(torch.isfinite(weight_CX).all()):
        return None
    if probe.features != ACTIVATIONS and weight_CX.shape[1] == sae.d_sae:
        moved_CF = weight_CX.float()
    elif probe.features == ACTIVATIONS and weight_CX.shape[1] == sae.W_dec.shape[1]:
        moved_CF = weight_CX.float() @ sae.W_dec.detach().float().T
    else:
        return None
    if len(moved_CF) > 1:
        moved_CF = moved_CF - moved_CF.mean(0)
    which_F = moved_CF.abs().argmax(0, keepdim=True)
    moved_F = moved_CF.gather(0, which_F)[0].numpy()
    return np.asarray(np.nan_to_num(moved_F * mean_F), dtype=np.float32)
