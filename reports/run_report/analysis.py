"""One hook's SAE, looked into: its newest checkpoint applied to the newest archived rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.reports.run_report.archive_rows import RowBlock, RowKey, newest_rows
from asys_bench.reports.run_report.coordinate_shifts import (
    CoordinateShift,
    coordinate_shifts,
    describe,
)
from asys_bench.reports.run_report.coordinates import (
    Coordinate,
    ObservationNames,
    read_observation_names,
)
from asys_bench.reports.run_report.feature_figures import DecoderMap, decoder_map
from asys_bench.reports.run_report.features import (
    Candidate,
    FeatureStats,
    activations,
    candidates,
    feature_stats,
    spread_out,
)
from asys_bench.reports.run_report.fields import Field, receptive_field
from asys_bench.reports.run_report.inputs import (
    Tokens,
    beside,
    input_hook,
    observations,
    read_streams,
    texts_of,
    tokens,
)
from asys_bench.reports.run_report.token_levels import token_levels
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import latest_checkpoint
from asys_bench.sae.checkpoint.native_format import load_sae
from asys_bench.sinks.archive.deletions import reason_text
from asys_bench.sinks.archive.read import open_shard
from asys_bench.sinks.archive.reader import Archive, open_archive
from asys_bench.sinks.archive.sidecar import ArchiveError

MOST_ROWS = 60_000
MOST_BYTES = 256 << 20
"""Rows of one hook that are looked at: at most these many and this much memory."""
EVERY = 4
"""Of a long archive one record batch in up to so many is looked at, over as many times the rows."""
FEATURES, EXAMPLES = 12, 6


@dataclass(frozen=True)
class Example:
    """A row that activates a feature, and what the model was given there, when it is archived."""

    activation: float
    host_step: int
    values: npt.NDArray[np.float32]
    observation: npt.NDArray[np.float32] | None = None
    tokens: Tokens | None = None


@dataclass(frozen=True)
class FeatureCard:
    """One of the most active features."""

    feature: int
    density: float
    mean: float
    highest: float
    examples: tuple[Example, ...]
    field: Field | None = None
    """Where in the space of observations it fires, when that can be mapped."""
    coordinate_shifts: tuple[CoordinateShift, ...] = ()
    """How the states that it fires on most differ from all states, coordinate by coordinate."""
    words: str = ""
    """The same in words; empty where no coordinate tells them apart."""


@dataclass(frozen=True)
class HookAnalysis:
    """What the report shows of one SAE; `problem` says why a part is missing."""

    hook: str
    architecture: str = ""
    """As it was trained: a BatchTopK SAE is a JumpReLU SAE afterwards."""
    d_in: int = 0
    d_sae: int = 0
    stats: FeatureStats | None = None
    plane: DecoderMap | None = None
    cards: tuple[FeatureCard, ...] = ()
    rare: tuple[FeatureCard, ...] = ()
    """Of a text: features that fire on few rows, and strongly."""
    problem: str = ""
    outlier_norm: float | None = None
    """Rows of a larger norm have no activations."""
    look_range: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest value over everything drawn as an observation or a row."""
    coordinates: tuple[Coordinate, ...] = ()
    """What the numbers of the observations are."""
    left_out: str = ""
    """Why observations are not drawn, where the host said so."""


def analyse(run_dir: Path, labels: Sequence[str]) -> list[HookAnalysis]:
    """Every SAE that has a checkpoint. Nothing of a run is too damaged to say so.

    labels: names of SAEs: a hook, `<hook>#<variant>`, `<input>-><output>` (a transcoder, which is looked
    at by the rows it reads) or a crosscoder (of which only the decoder is).
    """
    try:
        archive: Archive | None = open_archive(run_dir, "last")
        missing = ""
    except ArchiveError as error:
        archive, missing = None, str(error)
    found, streams = [], read_streams(run_dir)
    names = read_observation_names(run_dir)
    for label in labels:
        try:
            latest = latest_checkpoint(run_dir, label)
            if latest is None:
                continue
            sae, metadata = load_sae(latest)
        except (CheckpointError, OSError) as error:
            found.append(HookAnalysis(label, problem=str(error)))
            continue
        hook = str(metadata.get("hook_name") or label)
        trained_as = str(metadata.get("training_architecture") or sae.config.architecture)
        found.append(_look(label, hook, sae, trained_as, archive, missing, streams, names))
    return found


def _look(
    label: str,
    hook: str,
    sae: SparseAutoencoder,
    trained_as: str,
    archive: Archive | None,
    missing: str,
    streams: Sequence[Mapping[str, Any]],
    names: ObservationNames,
) -> HookAnalysis:
    basis = HookAnalysis(
        label,
        trained_as,
        sae.d_in,
        sae.d_sae,
        plane=decoder_map(sae),
        outlier_norm=None if math.isinf(sae.outlier_norm) else sae.outlier_norm,
        left_out=names.left_out,
    )
    try:
        looked = _looked(hook, sae, archive, missing, streams, names, MOST_ROWS)
        stats = looked.stats
        cards = looked.cards(stats.most_active(FEATURES))
        # What can be told apart best comes first.
        cards = tuple(sorted(cards, key=lambda card: -_telling(card)))
        rare: tuple[FeatureCard, ...] = ()
        if any(example.tokens is not None for card in cards for example in card.examples):
            shown = {card.feature for card in cards}
            others = stats.rare_and_strong(2 * FEATURES, EXAMPLES)
            chosen = [feature for feature in others if feature not in shown][:FEATURES]
            rare = looked.cards(chosen)
    except NothingToLookAtError as error:
        return _with(basis, problem=str(error))
    except ArchiveError as error:
        return _with(basis, problem=f"the archive cannot be read: {error}")
    width = max((len(card.coordinate_shifts) for card in cards), default=0)
    return _with(
        basis,
        stats=stats,
        cards=cards,
        rare=rare,
        look_range=look_range(cards),
        coordinates=tuple(looked.names.of(width)),
    )


class NothingToLookAtError(ValueError):
    """No rows of an SAE's hook are archived that it can be applied to; says why."""


@dataclass(frozen=True)
class LookedRows:
    """The newest archived rows of a hook with an SAE applied to them: what cards are made of.

    source: the archived stream of what the model was given, if there is one; names: of its numbers.
    """

    archive: Archive
    hook: str
    source: str | None
    sae: SparseAutoencoder
    stats: FeatureStats
    blocks: list[RowBlock]
    names: ObservationNames

    @property
    def rows_beside(self) -> int:
        """Rows to read of other streams: they are sampled apart, and may be denser."""
        return 2 * EVERY * self.stats.rows

    @cached_property
    def inputs(self) -> list[RowBlock]:
        """What the model was given."""
        if self.source is None:
            return []
        return list(newest_rows(self.archive, self.source, self.rows_beside))

    @cached_property
    def joined(self) -> npt.NDArray[np.float32] | None:
        """The input row of every row, as `beside` gives them."""
        return beside(self.inputs, self.blocks)

    def cards(
        self,
        features: Sequence[int],
        examples: int = EXAMPLES,
        among: Mapping[int, list[Candidate]] | None = None,
    ) -> tuple[FeatureCard, ...]:
        """What each of these features fires on.

        among: rows of each feature to choose examples from; None: those that it fires on most.

        Raises:
            ArchiveError: the archive cannot be read.
        """
        return _cards(self, features, examples, among)


def look_at(
    run_dir: Path,
    hook: str,
    sae: SparseAutoencoder,
    most_rows: int = MOST_ROWS,
    stats_of: Callable[[SparseAutoencoder, Sequence[RowBlock]], FeatureStats] = feature_stats,
) -> LookedRows:
    """An SAE over at most `most_rows` of the newest archived rows of its hook.

    stats_of: what encodes them.

    Raises:
        NothingToLookAtError: there are no such rows. ArchiveError: the archive cannot be read.
    """
    try:
        archive = open_archive(run_dir, "last")
    except ArchiveError as error:
        raise NothingToLookAtError(f"no activations to look at: {error}") from error
    names, streams = read_observation_names(run_dir), read_streams(run_dir)
    return _looked(hook, sae, archive, "", streams, names, most_rows, stats_of)


def _looked(
    hook: str,
    sae: SparseAutoencoder,
    archive: Archive | None,
    missing: str,
    streams: Sequence[Mapping[str, Any]],
    names: ObservationNames,
    most_rows: int,
    stats_of: Callable[[SparseAutoencoder, Sequence[RowBlock]], FeatureStats] = feature_stats,
) -> LookedRows:
    if len(sae.parts) > 1:
        raise NothingToLookAtError("its features are of several hooks: rows of one hook show none")
    if archive is None or hook not in archive.hooks:
        why = missing or _why_no_rows(archive, hook)
        raise NothingToLookAtError(f"no activations to look at: {why}")
    most = min(most_rows, max(1, MOST_BYTES // (8 * sae.d_in)))
    every = max(1, _rows_upto(archive, hook, EVERY * most) // most)
    found = newest_rows(archive, hook, most * every, every)
    blocks = [block for block in found if block.values.shape[1] == sae.d_in]
    if not blocks:
        raise NothingToLookAtError(f"the archive has no rows of {sae.d_in} values")
    told = next((stream for stream in names.streams if stream in archive.hooks), None)
    source = told or input_hook(archive, hook, streams)
    named = names if told is not None else ObservationNames()
    return LookedRows(archive, hook, source, sae, stats_of(sae, blocks), blocks, named)


def _why_no_rows(archive: Archive | None, hook: str) -> str:
    gone = archive.deleted_by_reason(hook) if archive is not None else {}
    told = [f"{of.rows:,} rows were deleted {reason_text(reason)}" for reason, of in gone.items()]
    return " and ".join(told) or "this hook was not archived"


def _rows_upto(archive: Archive, hook: str, most: int) -> int:
    """Archived rows of a hook, at most `most`."""
    rows = 0
    for path in archive.shards(hook):
        try:
            with open_shard(path) as (_, frames):
                rows += frames.rows
        except ArchiveError:
            continue
        if rows >= most:
            return most
    return rows


def _telling(card: FeatureCard) -> float:
    return max((one.distance for one in card.coordinate_shifts), default=0.0) if card.words else 0.0


def _with(basis: HookAnalysis, **changes: object) -> HookAnalysis:
    return replace(basis, **changes)  # type: ignore[arg-type]


def _cards(
    looked: LookedRows,
    features: Sequence[int],
    examples: int,
    among: Mapping[int, list[Candidate]] | None,
) -> tuple[FeatureCard, ...]:
    sae, stats, blocks = looked.sae, looked.stats, looked.blocks
    tops = candidates(stats, blocks, features) if among is None else among
    keys = {row.key for rows in tops.values() for row in rows}
    seen = observations(looked.inputs, keys)
    texts = tokens(looked.archive, texts_of(blocks, keys), looked.rows_beside)
    joined = looked.joined
    fields: dict[int, Field] = {}
    sides: dict[int, tuple[CoordinateShift, ...]] = {}
    coordinates: Sequence[Coordinate] = ()
    if joined is not None and tops:
        fields, sides = _over_observations(sae, blocks, list(tops), joined)
        coordinates = looked.names.of(joined.shape[1])
    chosen: dict[int, list[Candidate]] = {}
    for feature, rows in tops.items():
        known = [row for row in rows if row.key in texts or row.key in seen] or rows
        looks = [seen.get(row.key, row.values) for row in known]
        picked = (
            _first_of_each_text(known, texts, examples)
            if any(row.key in texts for row in known)
            else spread_out(known, looks, examples)
        )
        chosen[feature] = [known[index] for index in picked]
    shown = _with_levels(sae, blocks, chosen, texts)
    return tuple(
        FeatureCard(
            feature,
            float(stats.density_F[feature]),
            float(stats.mean_F[feature]),
            float(stats.top_KF[0, feature]),
            tuple(_example(row, seen, shown.get((feature, row.key))) for row in rows),
            fields.get(feature),
            sides.get(feature, ()),
            describe(sides.get(feature, ()), coordinates),
        )
        for feature, rows in chosen.items()
    )


def _with_levels(
    sae: SparseAutoencoder,
    blocks: Sequence[RowBlock],
    chosen: Mapping[int, Sequence[Candidate]],
    texts: Mapping[RowKey, Tokens],
) -> dict[tuple[int, RowKey], Tokens]:
    """(feature, row) -> its tokens, each with the feature's activation."""
    places = [
        (feature, row.key, texts[row.key])
        for feature, rows in chosen.items()
        for row in rows
        if row.key in texts
    ]
    levels = token_levels(sae, blocks, places)
    return {
        (feature, key): replace(tokens, levels=told)
        for (feature, key, tokens), told in zip(places, levels, strict=True)
    }


def _over_observations(
    sae: SparseAutoencoder,
    blocks: list[RowBlock],
    features: list[int],
    joined: npt.NDArray[np.float32],
) -> tuple[dict[int, Field], dict[int, tuple[CoordinateShift, ...]]]:
    """Receptive fields and coordinate_shifts of the features that have one, over rows with a known input."""
    known_N = np.isfinite(joined).all(1)
    acts_NF, seen_NW = activations(sae, blocks, features)[known_N], joined[known_N]
    fields: dict[int, Field] = {}
    sides: dict[int, tuple[CoordinateShift, ...]] = {}
    for column, feature in enumerate(features):
        field = receptive_field(acts_NF[:, column], seen_NW)
        if field is not None:
            fields[feature] = field
        if len(seen_NW):
            sides[feature] = coordinate_shifts(acts_NF[:, column], seen_NW)
    return fields, sides


def _first_of_each_text(
    rows: list[Candidate], texts: Mapping[RowKey, Tokens], wanted: int
) -> list[int]:
    """The strongest rows whose contexts differ."""
    chosen: dict[object, int] = {}
    for index, row in enumerate(rows):
        context = texts.get(row.key)
        chosen.setdefault(context.ids if context else row.key, index)
    return list(chosen.values())[:wanted]


def _example(
    row: Candidate,
    seen: Mapping[RowKey, npt.NDArray[np.float32]],
    tokens: Tokens | None,
) -> Example:
    return Example(row.activation, row.key[1], row.values, seen.get(row.key), tokens)


def look_range(cards: Sequence[FeatureCard]) -> tuple[float, float]:
    """Smallest and largest value over everything that is drawn as an observation or a row."""
    looks = [
        example.values if example.observation is None else example.observation
        for card in cards
        for example in card.examples
    ]
    finite = [look[np.isfinite(look)] for look in looks]
    joined = np.concatenate(finite) if finite else np.zeros(1)
    return (float(joined.min()), float(joined.max())) if joined.size else (0.0, 0.0)
