"""The probes of one hook: fitted to a window of rows, scored on another one of other blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.probe.fit import Linear, Whitening, fit_classes, fit_numbers, whitening
from asys_bench.change.probe.scores import NO_SCORE, Score, auc, mean_auc, r_squared
from asys_bench.change.probe.targets import Kind, Target
from asys_bench.change.probe.window import Rows

LEAST_OF_CLASS = 5
"""Rows of a class, on either side, from which on it is one."""
LEAST_ROWS = 32
MOST_HISTORY = 4096
"""Scores of a probe that are kept; beyond that every second one of the older half goes."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """One side: rows and what each of them weighs."""

    rows: Rows
    weight_N: Floats


@dataclass
class Probe:
    """A label's probe. classes: of its outputs, in order; None of a number."""

    label: str
    kind: Kind
    classes: list[float] | None = None
    linear: Linear | None = None
    score: Score = NO_SCORE
    rows: int = 0
    held_out_rows: int = 0
    shares: dict[float, float] | None = None
    """Class -> its share of the labelled rows."""
    history: list[tuple[int, float, float, float]] = field(default_factory=list)
    """(host step, value, low, high)."""

    @property
    def metric(self) -> str:
        return "auc" if self.kind == "class" else "r2"

    def note(self, host_step: int) -> None:
        """Add the score to the history."""
        if math.isfinite(self.score.value):
            self.history.append((host_step, self.score.value, self.score.low, self.score.high))
        if len(self.history) > MOST_HISTORY:
            half = MOST_HISTORY // 2
            self.history = [*self.history[:half:2], *self.history[half:]]


def fitted(
    targets: Sequence[Target],
    columns: Mapping[str, int],
    trained: Side,
    held_out: Side,
    before: Mapping[str, Probe],
    l2: float,
) -> list[Probe]:
    """A probe for each target that has a kind and enough rows.

    columns: place of each label in `Rows.labels_NK`. before: probes to begin with.
    """
    found = []
    basis = whitening(trained.rows.features, l2) if len(trained.rows) else None
    for target in targets:
        if target.kind is None or target.name not in columns:
            continue
        place = columns[target.name]
        values_N, score_values_N = _column(trained, place), _column(held_out, place)
        make = _classes if target.kind == "class" else _numbers
        old = before.get(target.name)
        probe = make(target, values_N, score_values_N, trained, held_out, old, l2, basis)
        if probe is not None:
            probe.history = old.history if old is not None else []
            found.append(probe)
    return found


def _column(side: Side, place: int) -> Floats:
    labels_NK = side.rows.labels_NK
    if place < labels_NK.shape[1]:
        return labels_NK[:, place]
    return np.full(len(labels_NK), np.nan)


def _classes(
    target: Target,
    values_N: Floats,
    held_out_N: Floats,
    trained: Side,
    held_out: Side,
    old: Probe | None,
    l2: float,
    basis: Whitening | None,
) -> Probe | None:
    classes = [c for c in target.classes if (values_N == c).sum() >= LEAST_OF_CLASS]
    total = sum(target.counts.values())
    shares = {c: target.counts[c] / total for c in classes} if total else None
    probe = Probe(target.name, "class", classes, shares=shares)
    index_N = _indices(values_N, classes)
    there = np.flatnonzero(index_N >= 0)
    probe.rows = len(there)
    if len(classes) < 2 or len(there) < LEAST_ROWS:
        return probe if len(there) else None
    start = old.linear if old is not None and old.classes == classes else None
    probe.linear = fit_classes(
        trained.rows.features.some(torch.from_numpy(there)),
        torch.from_numpy(index_N[there]),
        _normed(trained.weight_N[there]),
        len(classes),
        l2,
        start,
        basis,
    )
    index_N = _indices(held_out_N, classes)
    there = np.flatnonzero(index_N >= 0)
    probe.held_out_rows = len(there)
    if len(there):
        rows = held_out.rows.some(there)
        logits_NC = probe.linear.of(rows.features).double().numpy()
        weight_N, class_N = held_out.weight_N[there], index_N[there]
        if len(classes) == 2:
            probe.score = auc(logits_NC[:, 0], class_N == 1, weight_N, rows.block_N)
        else:
            chance_NC = torch.from_numpy(logits_NC).softmax(1).numpy()
            probe.score = mean_auc(chance_NC, class_N, weight_N, rows.block_N)
    return probe


def _numbers(
    target: Target,
    values_N: Floats,
    held_out_N: Floats,
    trained: Side,
    held_out: Side,
    old: Probe | None,
    l2: float,
    basis: Whitening | None,
) -> Probe | None:
    probe = Probe(target.name, "number")
    there = np.flatnonzero(np.isfinite(values_N))
    probe.rows = len(there)
    if len(there) < LEAST_ROWS:
        return probe if len(there) else None
    probe.linear = fit_numbers(
        trained.rows.features.some(torch.from_numpy(there)),
        torch.from_numpy(values_N[there]).float(),
        _normed(trained.weight_N[there]),
        l2,
        old.linear if old is not None and old.classes is None else None,
        basis,
    )
    there = np.flatnonzero(np.isfinite(held_out_N))
    probe.held_out_rows = len(there)
    if len(there):
        rows = held_out.rows.some(there)
        predicted_N = probe.linear.of(rows.features)[:, 0].double().numpy()
        weight_N = held_out.weight_N[there]
        probe.score = r_squared(predicted_N, held_out_N[there], weight_N, rows.block_N)
    return probe


def _indices(values_N: Floats, classes: Sequence[float]) -> npt.NDArray[np.int64]:
    """Which class each row is of; -1: none."""
    found = np.full(len(values_N), -1, dtype=np.int64)
    for index, value in enumerate(classes):
        found[values_N == value] = index
    return found


def _normed(weight_N: Floats) -> torch.Tensor:
    """With a mean of one, so that l2 means the same whatever was thinned."""
    return torch.from_numpy(weight_N / weight_N.mean()).float()
