"""What differs between two sets of rows: two runs, or two moments of one.

The features of SAEs of both sides are looked for in the rows of both. Rows are cut into units (`units`), and
of each feature it is asked whether the units in which it is present are shared out by chance: Fisher's
exact test, two-sided (twice the smaller tail), declared at `FDR` by Benjamini and Hochberg over all
features of both SAEs. A difference is a rate that is at least `LEAST_RATIO` times the other: an SAE fires
a little more often on the rows that it was trained on, and a large sample tells that from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.reservoir.read import read_reservoir
from asys_bench.change.reservoir.rows import ReservoirRows
from asys_bench.change.statistics import (
    declared,
    log_likelihood_ratio,
    lower_tail,
    presence,
)
from asys_bench.change.timeline.firing import Firing, firing, one_thread
from asys_bench.change.timeline.histories import LEAST_FIRED
from asys_bench.change.timeline.twins import SAME_COSINE
from asys_bench.change.timeline.units import blocks_of, unit_rows, units_of
from asys_bench.sae import SparseAutoencoder, latest_checkpoint, load_sae

LEAST_RATIO = 2.0


@dataclass(frozen=True)
class Side:
    """Rows of one run or moment, and the SAE of it; None: it has none of its own."""

    name: str
    rows: ReservoirRows
    sae: SparseAutoencoder | None = None


@dataclass(frozen=True)
class Difference:
    """A feature that is more frequent on one side. feature: of the SAE of side `of`."""

    of: str
    feature: int
    rate_a: float
    rate_b: float
    p: float
    evidence: float
    """Log-likelihood ratio of two rates against one, of units."""
    also: int = 0
    """Further features of its direction that differ as well, with less evidence."""


@dataclass(frozen=True)
class Comparison:
    """differences: the one with the most evidence first."""

    features: int
    units_a: int
    units_b: int
    differences: tuple[Difference, ...]


@one_thread()
def compared(a: Side, b: Side) -> Comparison:
    """The features of both SAEs over the rows of both sides.

    Raises:
        ValueError: neither has an SAE, or the rows are of two widths.
    """
    saes = [side for side in (a, b) if side.sae is not None]
    if not saes:
        raise ValueError("neither side has an SAE of this hook")
    if a.rows.values.shape[1] != b.rows.values.shape[1]:
        raise ValueError(
            f"rows of {a.name} have {a.rows.values.shape[1]} numbers, of {b.name} {b.rows.values.shape[1]}"
        )
    features = sum(side.sae.d_sae for side in saes if side.sae is not None)
    blocks = [blocks_of(side.rows) for side in (a, b)]
    wanted = max(unit_rows(one, features) for one in blocks)
    units = [units_of(one, wanted) for one in blocks]
    tables: list[tuple[npt.NDArray[np.bool_], Firing, Firing]] = []
    for side in saes:
        assert side.sae is not None
        both = firing(side.sae, torch.cat([a.rows.values, b.rows.values])).strong()
        one, other = both.split(len(a.rows))
        counts = [f.counts(u.of_row, u.count) for f, u in zip((one, other), units, strict=True)]
        tables.append((presence(np.concatenate(counts)), one, other))
    first = units[0].count
    total = first + units[1].count
    found: list[Difference] = []
    p_all, all_differ, entries = [], [], []
    for side, (present_UF, one, other) in zip(saes, tables, strict=True):
        hits_F, marked_F = present_UF[:first].sum(0), present_UF.sum(0)
        p_F = _fisher(hits_F, marked_F, first, total)
        rate_a, rate_b = one.total / max(1, one.rows), other.total / max(1, other.rows)
        enough = one.total + other.total >= LEAST_FIRED
        low, high = np.minimum(rate_a, rate_b), np.maximum(rate_a, rate_b)
        differ = enough & (high >= LEAST_RATIO * low)
        p_all.append(np.where(differ, p_F, 1.0))
        all_differ.append(differ)
        llr_F = log_likelihood_ratio(hits_F, first, marked_F, total)
        entries.append((side, rate_a, rate_b, llr_F))
    told = declared(np.concatenate(p_all))
    at = 0
    directions: list[torch.Tensor] = []
    for (side, rate_a, rate_b, llr_F), p_F in zip(entries, p_all, strict=True):
        assert side.sae is not None
        own = told[at : at + len(p_F)]
        at += len(p_F)
        W_FD = torch.nn.functional.normalize(side.sae.W_dec.detach(), dim=1)
        for feature in np.flatnonzero(own).tolist():
            directions.append(W_FD[feature])
            found.append(
                Difference(
                    side.name, feature, float(rate_a[feature]), float(rate_b[feature]),
                    float(p_F[feature]), float(llr_F[feature]),
                )
            )  # fmt: skip
    return Comparison(features, first, total - first, _grouped(found, directions))


def differences_of(
    a: tuple[Path, tuple[float, float] | None],
    b: tuple[Path, tuple[float, float] | None],
    hook: str,
    names: tuple[str, str],
) -> Comparison | None:
    """Of one hook of two runs, each with a range of host steps (None: all of it); None where one of them has
    no reservoir of it, or neither an SAE.

    Raises:
        ReservoirError, CheckpointError, OSError: a file is damaged.
        ValueError: the rows of the two are of other widths, or a range is empty.
    """
    sides: list[Side] = []
    for (run_dir, steps), name in zip((a, b), names, strict=True):
        rows = read_reservoir(run_dir, hook)
        if rows is None:
            return None
        if steps is not None:
            rows = rows[np.flatnonzero((rows.host_step >= steps[0]) & (rows.host_step <= steps[1]))]
            if not len(rows):
                raise ValueError(f"{name}: the reservoir has no rows of these steps")
        sides.append(Side(name, rows, None if sides and b[0] == a[0] else _sae_of(run_dir, hook)))
    return compared(*sides) if any(side.sae is not None for side in sides) else None


def _sae_of(run_dir: Path, hook: str) -> SparseAutoencoder | None:
    try:
        latest = latest_checkpoint(run_dir, hook)
    except OSError:
        return None
    return load_sae(latest)[0] if latest is not None else None


def _fisher(
    hits_F: npt.NDArray[np.int64], marked_F: npt.NDArray[np.int64], first: int, total: int
) -> npt.NDArray[np.float64]:
    """Twice the smaller tail, at most 1."""
    low = hits_F * float(total) <= first * marked_F.astype(np.float64)
    x = np.where(low, hits_F, marked_F - hits_F)
    drawn = np.where(low, first, total - first)
    some = (marked_F > 0) & (marked_F < total)
    p_F = np.ones(len(hits_F))
    p_F[some] = np.minimum(1.0, 2 * lower_tail(x[some], total, drawn[some], marked_F[some]))
    return p_F


def _grouped(found: list[Difference], directions: list[torch.Tensor]) -> tuple[Difference, ...]:
    """One entry for features of one direction (of both SAEs): the one with the most evidence."""
    order = sorted(range(len(found)), key=lambda index: -found[index].evidence)
    heads: list[int] = []
    also: dict[int, int] = {}
    for index in order:
        twin = next(
            (head for head in heads if float(directions[head] @ directions[index]) >= SAME_COSINE),
            None,
        )
        if twin is None:
            heads.append(index)
            also[index] = 0
        else:
            also[twin] += 1
    return tuple(replace(found[index], also=also[index]) for index in heads)
