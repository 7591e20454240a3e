"""`ProbedHook`: the rows of one hook on their way from the bus to what its probes are fitted to.

Rows that have got their labels wait in bulk, become features where an SAE is asked for, and go into one of
two windows: of blocks that are trained on, or of blocks that are held out.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.label_join import Joined
from asys_bench.change.probe.blocks import BlockRule, Ids, is_held_out
from asys_bench.change.probe.features import FeatureSource
from asys_bench.change.probe.gate import Gate
from asys_bench.change.probe.options import ProbeOptions
from asys_bench.change.probe.probes import Probe
from asys_bench.change.probe.targets import Target
from asys_bench.change.probe.window import Rows, Window
from asys_bench.change.sae_choice import sae_of
from asys_bench.contracts.sink import SinkContext

FIT_SHARE, RENEWED_SHARE = 0.5, 1.0
"""A hook is fitted again when so much of its windows has changed while they grow, so that all fits on the
way to full windows cost as much as the last few of them, and when they are new once they are full;"""
FIT_S, MOST_FITS = 60.0, 60
"""or when something has, and so much time has passed: a minute, and of more than an hour a sixtieth."""
BULK_ROWS, BULK_BYTES = 2048, 4 << 20
"""So many joined rows are brought into the windows together, and of narrow ones up to four times as many,
while that is no more than half a window."""
HELD_OUT_PART = 3
"""The window of held-out rows is this part of the other."""
MOST_LABELS = 64
Floats = npt.NDArray[np.float64]


@dataclass(eq=False)
class Payload:
    """Rows of one packet, copied. draw_N: as `Rows.draw_N`."""

    hook: ProbedHook
    x_ND: torch.Tensor
    draw_N: Floats
    dims: tuple[int, ...] | None
    text: int


@dataclass(eq=False)
class _Bulk:
    """Joined rows that are not in a window yet."""

    parts: list[Joined[Payload]] = field(default_factory=list)
    rows: int = 0


class ProbedHook:
    """One hook: its windows, its labels and its probes."""

    def __init__(self, name: str, options: ProbeOptions, context: SinkContext, width: int) -> None:
        self.name, self.width = name, width
        self._options = options
        self._attempt, self._seed = context.attempt, context.seed
        self.features = FeatureSource(name, width, sae_of(options.saes, name), context.run_dir)
        life = (context.attempt << 32) + context.incarnation
        self.rule = BlockRule(options.block, life)
        most = int(options.window_mib * (1 << 20)) // (4 * self.features.numbers)
        self.capacity = max(64, min(options.window_rows, most))
        self.trained = Window(self.capacity)
        self.held_out = Window(max(32, self.capacity // HELD_OUT_PART))
        self.targets: dict[str, Target] = {}
        self.columns: dict[str, int] = {}
        self.probes: dict[str, Probe] = {}
        self._bulk = _Bulk()
        self._bulk_rows = max(
            BULK_ROWS, min(4 * BULK_ROWS, self.capacity // 2, BULK_BYTES // (4 * width))
        )
        self.gate = Gate(self.capacity)
        self.newest_step = 0
        self.due = 0.0
        self.began_at = time.monotonic()
        self.fitted_at = -math.inf
        self.changed = 0
        """Rows that came into the windows since the last fit."""
        slot = context.slot
        self.rows = slot.counter("probe_rows", hook=name)
        self.labelled = slot.counter("probe_labelled_rows", hook=name)

    def open_gate(self) -> None:
        """As wide as the windows want it now."""
        share = max(self.trained.share, self.held_out.share)
        boost = max((target.most_boost for target in self.targets.values()), default=1.0)
        self.gate.want(share, boost)

    def came(
        self, rows_M: npt.NDArray[np.int64], newest_step: int, call_M: Floats
    ) -> npt.NDArray[np.bool_]:
        """Packets of so many rows, of these calls: which of them are to be read."""
        rows = int(rows_M.sum())
        self.rows.add(rows)
        self.gate.count(rows, self.trained.share, is_full=self.trained.is_full)
        self.newest_step = max(self.newest_step, newest_step)
        return self.gate.takes(call_M, rows_M)

    def is_due(self, now: float) -> bool:
        """Whether it is to be fitted."""
        changed = self.changed + self._bulk.rows
        if not changed or now < self.due:
            return False
        held = len(self.trained) + len(self.held_out) + self._bulk.rows
        share = RENEWED_SHARE if self.trained.is_full else FIT_SHARE
        pause_s = max(FIT_S, (now - self.began_at) / MOST_FITS)
        return changed >= share * held or now - self.fitted_at >= pause_s

    def add(self, done: Joined[Payload]) -> None:
        """Rows that have got their labels."""
        self._bulk.parts.append(done)
        self._bulk.rows += len(done.rows_N)
        if self._bulk.rows >= self._bulk_rows:
            self.settle()

    def settle(self) -> None:
        """Bring joined rows into the windows; they are lost where the SAE that they are for is missing."""
        bulk, self._bulk = self._bulk, _Bulk()
        if not bulk.parts:
            return
        if self.features.renew():
            self.trained.clear()
            self.held_out.clear()
        if self.features.missing:
            return
        labels_NK = self._labels_of(bulk)
        draw_N = np.concatenate([part.payload.draw_N for part in bulk.parts])
        block_N = self._blocks_of(bulk)
        boost_N = np.ones(len(draw_N))
        for name, target in self.targets.items():
            values_N = labels_NK[:, self.columns[name]]
            target.saw(values_N)
            boost_N = np.maximum(boost_N, target.boost(values_N))
        out_N = is_held_out(block_N, self._seed)
        x_ND = torch.cat([part.payload.x_ND for part in bulk.parts])
        for window, own_N in ((self.held_out, out_N), (self.trained, ~out_N)):
            own_boost_N = boost_N.clip(max=max(1.0, self.gate.reach / window.share))
            place_M = np.flatnonzero(own_N & (draw_N < own_boost_N * window.share))
            if len(place_M):
                features = self.features.of(x_ND[torch.from_numpy(place_M)])
                window.add(
                    Rows(
                        features, labels_NK[place_M], draw_N[place_M], own_boost_N[place_M],
                        block_N[place_M],
                    )
                )  # fmt: skip
                self.changed += len(place_M)
        self.labelled.add(len(draw_N))
        self.open_gate()

    def _blocks_of(self, bulk: _Bulk) -> Ids:
        """The block of each row; of all parts at once where a label is the block, as `BlockRule.of`."""
        rule, attempt, parts = self.rule, self._attempt, bulk.parts
        if rule.kind in parts[0].labels and all(rule.kind in part.labels for part in parts):
            values_N = np.concatenate([part.labels[rule.kind] for part in parts])
            if np.isfinite(values_N).all():
                source_N = np.repeat(
                    [part.key.source for part in parts], [len(part.rows_N) for part in parts]
                )
                return rule.of_label(attempt, source_N, values_N)
        return np.concatenate(
            [
                rule.of(
                    part.key,
                    attempt,
                    part.payload.dims,
                    part.payload.text,
                    part.rows_N,
                    part.labels,
                )
                for part in parts
            ]
        )

    def _labels_of(self, bulk: _Bulk) -> Floats:
        for name in dict.fromkeys(name for part in bulk.parts for name in part.labels):
            if name in self.columns or len(self.columns) >= MOST_LABELS:
                continue
            if not self._options.learns(name):
                continue
            self.columns[name] = len(self.columns)
            self.targets[name] = Target(name, self._options.kinds.get(name))
        labels_NK = np.full((bulk.rows, max(1, len(self.columns))), np.nan)
        at = 0
        for part in bulk.parts:
            for name, values_N in part.labels.items():
                if name in self.columns:
                    labels_NK[at : at + len(values_N), self.columns[name]] = values_N
            at += len(part.rows_N)
        return labels_NK
