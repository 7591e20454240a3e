"""The timelines of a run: its newest SAEs, run over its reservoirs.

One setting for all runs: every constant is beside the code that uses it, with its reason.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.change.reservoir.read import ReservoirError, read_reservoir
from asys_bench.change.reservoir.rows import ReservoirRows, mixed
from asys_bench.change.timeline.appeared import first_pairs, with_appeared
from asys_bench.change.timeline.causes import Cause, ConstantBatch, constant_batch, with_causes
from asys_bench.change.timeline.earlier import packed, with_earlier
from asys_bench.change.timeline.firing import Firing, Residuals, firing, one_thread
from asys_bench.change.timeline.histories import History, Verdict, histories
from asys_bench.change.timeline.left_over import LeftOver, firing_of, left_over
from asys_bench.change.timeline.twins import marked_robust, without_twins
from asys_bench.change.timeline.units import blocks_of, unit_rows, units_of
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.timeline_document import (
    CURVE_POINTS,
    MOST_LIVES,
    FeatureLife,
    RowAt,
    Timeline,
    read_timeline,
)
from asys_bench.sae import CheckpointError, SparseAutoencoder, latest_checkpoint, load_sae
from asys_bench.sae.checkpoint.lives import Lives, read_lives
from asys_bench.sae.config import OF_SEVERAL_HOOKS

MOST_PRODUCTS, LEAST_ROWS = 1 << 38, 8192
"""Multiplications of a pass, and rows that it takes whatever they cost: of an SAE of 576 x 4,608 all rows of
a reservoir (about 8 s of a core), of one of 4,096 x 32,768 as many as LEAST_ROWS."""
ROWS_AT_BIRTH = 6
"""Shown of a birth: the strongest so many of its first rows (`appeared.FIRST_ROWS`)."""


@one_thread()
def timelines_of(
    run_dir: Path, labels: Sequence[str], *, within_s: float = float("inf")
) -> list[Timeline]:
    """Of each SAE that has a checkpoint, in order; nothing is too damaged to say so (`problem`).

    labels: of SAEs (a hook, or `<hook>#<variant>`). Births that two variants of a hook saw are robust.
    within_s: no further SAE is begun after so many seconds.
    """
    until = time.monotonic() + within_s
    looked: dict[str, list[int]] = defaultdict(list)
    kept: dict[str, tuple[ReservoirRows | None, ReservoirRows | None]] = {}
    told: list[Timeline] = []
    for label in labels:
        if time.monotonic() > until:
            break
        one = _look(run_dir, label, kept)
        if one is not None:
            if not one.problem:
                looked[one.hook].append(len(told))
            told.append(one)
    for variants in looked.values():
        of_hook = [told[at] for at in variants]
        for at in variants if len(variants) > 1 else ():
            told[at] = marked_robust(told[at], [one for one in of_hook if one is not told[at]])
    return told


def _look(
    run_dir: Path,
    label: str,
    kept: dict[str, tuple[ReservoirRows | None, ReservoirRows | None]],
) -> Timeline | None:
    try:
        latest = latest_checkpoint(run_dir, label)
    except OSError:
        return None
    if latest is None:
        return None
    nothing = Timeline(label, label, latest.name, 0, 0, 0, 0, 0)
    try:
        sae, metadata = load_sae(latest)
        lives = read_lives(latest)
        hook = str(metadata.get("hook_name") or label)
        if hook not in kept:
            kept[hook] = read_reservoir(run_dir, hook), read_reservoir(run_dir, hook, constant=True)
    except (CheckpointError, ReservoirError, OSError) as error:
        return replace(nothing, problem=str(error))
    nothing = replace(nothing, hook=hook, features=sae.d_sae)
    rows, constant = kept[hook]
    misfit = _misfit(sae, lives, hook, rows, constant)
    if misfit or rows is None:
        return replace(nothing, problem=misfit)
    timeline = timeline_of(sae, lives, rows, constant)
    decoder_FD = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    with suppress(ReadingError):  # the first look
        timeline = with_earlier(timeline, read_timeline(run_dir, label), decoder_FD)
    return replace(timeline, label=label, hook=hook, checkpoint=latest.name)


def _misfit(
    sae: SparseAutoencoder,
    lives: Lives | None,
    hook: str,
    rows: ReservoirRows | None,
    constant: ReservoirRows | None,
) -> str:
    if sae.name in OF_SEVERAL_HOOKS:
        return f"a {sae.name} takes the rows of several hooks"
    if rows is None:
        return f"the run has no reservoir of {hook}: add a sink of kind `reservoir` to its configuration"
    for some in (rows, constant):
        if some is not None and (
            some.values.shape[1] != sae.d_in or not some.values.is_floating_point()
        ):
            return f"the reservoir of {hook} has rows of {some.values.shape[1]}, not {sae.d_in} numbers"
    if lives is not None and lives.features != sae.d_sae:
        return f"its lives are of {lives.features} features, not {sae.d_sae}"
    return ""


def timeline_of(
    sae: SparseAutoencoder,
    lives: Lives | None,
    rows: ReservoirRows,
    constant: ReservoirRows | None = None,
) -> Timeline:
    """Of one SAE over the rows of its hook's reservoir, which are in time order; without names.

    lives: of the checkpoint; None: not known. constant: rows of the constant evaluation batch.
    """
    rows = _affordable(rows, sae)
    residuals = Residuals.of(rows.values)
    found = firing(sae, rows.values, residuals).strong()
    left = left_over(residuals, sae.W_dec.detach(), torch.from_numpy(found.total > 0))
    found = found.joined(firing_of(left, residuals).strong())
    blocks = blocks_of(rows)
    units = units_of(blocks, unit_rows(blocks, sae.d_sae))
    told = histories(found, units, rows.host_step, lives)
    first, last = int(rows.host_step[0]), int(rows.host_step[-1])
    batch: ConstantBatch | None = None
    if constant is not None:
        residuals = Residuals.of(constant.values)
        on_constant = firing(sae, constant.values, residuals).strong()
        batch = constant_batch(constant, on_constant.joined(firing_of(left, residuals).strong()))
    caused = with_causes(told, batch, first, last)
    edges = np.linspace(0, len(rows), min(CURVE_POINTS, len(rows)) + 1).round().astype(np.int64)
    listed = [
        _life(history, cause, shown, rows, found, edges, sae, left)
        for history, cause, shown in caused
        if history.verdict in (Verdict.BORN, Verdict.GRADUAL, Verdict.TURNED)
        or (history.feature < sae.d_sae and _says_more(history))
    ]
    listed.sort(key=lambda one: (one.verdict != Verdict.BORN, one.born_p, one.feature))
    listed = with_appeared(listed[:MOST_LIVES], rows, found, sae)
    listed = without_twins(listed, last - first)
    counts = {verdict.value: 0 for verdict in Verdict}
    for history in told[: sae.d_sae]:
        counts[history.verdict.value] += 1
    middles = np.minimum((edges[:-1] + edges[1:]) // 2, len(rows) - 1)
    return Timeline(
        label="",
        hook="",
        checkpoint="",
        features=sae.d_sae,
        rows=len(rows),
        units=units.count,
        first_step=first,
        last_step=last,
        constant_moments=0 if batch is None else len(batch.step_M),
        counts=counts,
        curve_steps=tuple(rows.host_step[middles].astype(float).tolist()),
        lives=tuple(listed),
    )


def _says_more(history: History) -> bool:
    return history.died_step is not None or history.late_by_steps is not None


def _affordable(rows: ReservoirRows, sae: SparseAutoencoder) -> ReservoirRows:
    """As many rows as a pass may take, chosen by a hash of their ranks: evenly over the run."""
    most = max(LEAST_ROWS, MOST_PRODUCTS // (sae.d_in * sae.d_sae))
    if len(rows) <= most:
        return rows
    drawn = mixed(rows.rank.view(np.uint64)) >> np.uint64(11)
    return rows[np.flatnonzero(drawn < np.uint64((most << 53) // len(rows)))]


def _life(
    history: History,
    cause: Cause | None,
    shown: float | None,
    rows: ReservoirRows,
    found: Firing,
    edges: npt.NDArray[np.int64],
    sae: SparseAutoencoder,
    left: LeftOver,
) -> FeatureLife:
    unread = history.feature >= sae.d_sae
    direction = ""
    if unread:
        direction = packed(left.direction_CD[history.feature - sae.d_sae])
    elif history.verdict is Verdict.BORN:
        direction = packed(sae.W_dec[history.feature])
    fired = found.rows_of(history.feature)
    counts = np.histogram(fired, bins=edges)[0] if len(edges) > 1 else np.zeros(0)
    return FeatureLife(
        feature=history.feature,
        verdict=history.verdict.value,
        generation=history.generation,
        found_step=history.found_step,
        late_by_steps=history.late_by_steps,
        born_step=history.born_step,
        born_low=history.born_low,
        born_high=history.born_high,
        born_p=history.born_p,
        died_step=history.died_step,
        rate_before=history.rate_before,
        rate_after=history.rate_after,
        cause=cause.value if cause is not None else "",
        learnt_step=shown,
        usefulness=found.usefulness_of(history.feature),
        birth_cosine=history.birth_cosine,
        direction=direction,
        unread=unread,
        rates=tuple(np.round(counts / np.maximum(np.diff(edges), 1), 6).tolist()),
        rows=_rows_at_birth(history, rows, found),
    )


def _rows_at_birth(history: History, rows: ReservoirRows, found: Firing) -> tuple[RowAt, ...]:
    if history.born_step is None:
        return ()
    fired, value = found.rows_of(history.feature), found.values_of(history.feature)
    early = first_pairs(history.feature, history.born_step, rows, found)
    best = early[np.argsort(-value[early], kind="stable")][:ROWS_AT_BIRTH]
    return tuple(
        RowAt(
            source=int(rows.source[at]),
            host_step=int(rows.host_step[at]),
            weights_version=int(rows.weights_version[at]),
            microbatch=int(rows.microbatch[at]),
            call=int(rows.call[at]),
            row=int(rows.row[at]),
            activation=float(strength),
            text=int(rows.about["text"][at]),
        )
        for at, strength in zip(fired[best], value[best], strict=True)
    )
