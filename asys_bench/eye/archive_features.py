"""Features by the newest checkpoint of an SAE, applied to the newest archived rows.

Every row is encoded once (`codes`), so that histograms, co-firing and densities over time of any feature
are a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.eye.codes import Codes, codes_of
from asys_bench.eye.features import MOST_EXAMPLES, Document, Floats
from asys_bench.eye.pictures import tree
from asys_bench.eye.watch import plain
from asys_bench.reports.run_report.analysis import (
    Example,
    FeatureCard,
    LookedRows,
    look_at,
    look_range,
)
from asys_bench.reports.run_report.archive_rows import RowBlock, RowKey
from asys_bench.reports.run_report.features import Candidate, FeatureStats
from asys_bench.reports.run_report.input_pictures import field_map, observation, row, strips
from asys_bench.reports.run_report.inputs import Tokens, texts_of, tokens
from asys_bench.sae.architectures.base import SparseAutoencoder

MOST_ROWS = 20_000
MOST_CODES = 1 << 27
"""Rows times features at most: 134 million activations are made, whatever the SAE's size."""
LEAST_ROWS = 2_000
EXAMPLES, TOPS, DESCRIBED = 12, 5, 64
BINS, MOMENTS, COFIRING = 40, 32, 20
LEAST_TOGETHER = 3
OCTAVES, PARTS = 7, 16


class ArchiveFeatures:
    """`features.Features`; see the module."""

    kind = "archive"

    def __init__(
        self, looked: LookedRows, codes: Codes, vocabulary: Mapping[int, str], environment_id: str
    ) -> None:
        self._looked, self._vocabulary = looked, vocabulary
        self._environment_id = environment_id
        self._newest: tuple[int, tuple[FeatureCard, ...]] = (-1, ())
        self._ahead: dict[int, tuple[FeatureCard, FeatureCard | None]] = {}
        self._codes = codes
        self._step_N = np.concatenate([block.keys["host_step"] for block in looked.blocks])
        self._contexts = self._read_contexts()
        self._tops = self._read_tops()
        self._words = self._read_words()

    @classmethod
    def open(
        cls,
        run_dir: Path,
        hook: str,
        sae: SparseAutoencoder,
        vocabulary: Mapping[int, str],
        environment_id: str = "",
        told: Callable[[str], None] = lambda text: None,
    ) -> ArchiveFeatures:
        """Of the SAE of a hook. told: gets how far it is. Raises as `look_at`."""
        made: list[Codes] = []

        def stats_of(sae: SparseAutoencoder, blocks: Sequence[RowBlock]) -> FeatureStats:
            rows = sum(map(len, blocks))
            made.append(
                codes_of(
                    sae, blocks, lambda n: told(f"{100 * n // rows} % of {rows:,} archived rows")
                )
            )
            return made[0].stats()

        most = max(LEAST_ROWS, min(MOST_ROWS, MOST_CODES // max(1, sae.d_sae)))
        looked = look_at(run_dir, hook, sae, most, stats_of)
        told("what was before and after the tokens that they fire on")
        return cls(looked, made[0], vocabulary, environment_id)

    @property
    def sae(self) -> SparseAutoencoder:
        return self._looked.sae

    @property
    def d_sae(self) -> int:
        return self._looked.sae.d_sae

    @property
    def rows(self) -> int:
        return self._looked.stats.rows

    @property
    def about(self) -> str:
        return (
            f"the newest checkpoint over {self.rows:,} of the newest archived rows, of host steps "
            f"{int(self._step_N.min()):,} to {int(self._step_N.max()):,}"
        )

    @property
    def density_F(self) -> Floats:
        return self._looked.stats.density_F

    @property
    def mean_F(self) -> Floats:
        return self._looked.stats.mean_F

    @property
    def max_F(self) -> Floats:
        largest_F: Floats = self._looked.stats.top_KF[0]
        return largest_F

    @property
    def alike_F(self) -> None:
        return None

    def _read_contexts(self) -> dict[int, Tokens]:
        """Row -> its token in context, for the rows that some feature fires on most."""
        stats, blocks = self._looked.stats, self._looked.blocks
        wanted = np.unique(stats.where_KF[:TOPS][stats.top_KF[:TOPS] > 0])
        place = self._keys(wanted.tolist())
        texts = texts_of(blocks, place.values())
        found = tokens(self._looked.archive, texts, 8 * stats.rows)
        return {row: found[key] for row, key in place.items() if key in found}

    def _keys(self, rows: Sequence[int]) -> dict[int, RowKey]:
        starts = np.cumsum([0, *(len(block) for block in self._looked.blocks)])
        found = {}
        for number in rows:
            at = int(np.searchsorted(starts, number, side="right")) - 1
            found[int(number)] = self._looked.blocks[at].key(int(number - starts[at]))
        return found

    def _read_words(self) -> list[str]:
        """Of a text its top token; of observations the coordinates that tell a feature apart."""
        if self._contexts:
            return [told[0] if told else "" for told in self._tops]
        words = [""] * self.d_sae
        if self._looked.source is not None:
            for card in self._looked.cards(self._looked.stats.most_active(DESCRIBED)):
                words[card.feature] = card.words
        return words

    def words(self) -> Sequence[str]:
        return self._words

    def top_tokens(self) -> Sequence[Sequence[str]]:
        return self._tops

    def _read_tops(self) -> list[list[str]]:
        stats = self._looked.stats
        found: list[list[str]] = []
        for feature in range(self.d_sae):
            strength: dict[str, float] = {}
            for value, number in zip(
                stats.top_KF[:TOPS, feature].tolist(),
                stats.where_KF[:TOPS, feature].tolist(),
                strict=True,
            ):
                context = self._contexts.get(number) if value > 0 else None
                if context is not None:
                    token = self._text(context.ids[context.at])
                    strength[token] = strength.get(token, 0.0) + value
            found.append(sorted(strength, key=lambda token: -strength[token]))
        return found

    def _text(self, token: int) -> str:
        return self._vocabulary.get(token, f"<{token}>")

    def examples(self, feature: int, kind: str, most: int = MOST_EXAMPLES) -> list[Document]:
        cards = self._random_cards(feature) if kind == "random" else self._top_cards(feature)
        shown = [example for card in cards for example in card.examples][:most]
        bounds = look_range(cards)
        return [self._example(one, bounds) for one in shown]

    def look_ahead(self, features: Sequence[int]) -> None:
        among = {feature: self._some_rows(feature) for feature in features}
        tops = self._looked.cards(features, EXAMPLES)
        random = {card.feature: card for card in self._looked.cards(list(among), EXAMPLES, among)}
        self._ahead = {card.feature: (card, random.get(card.feature)) for card in tops}

    def _random_cards(self, feature: int) -> tuple[FeatureCard, ...]:
        ahead = self._ahead.get(feature)
        if ahead is not None:
            return () if ahead[1] is None else (ahead[1],)
        return self._looked.cards([feature], EXAMPLES, {feature: self._some_rows(feature)})

    def _top_cards(self, feature: int) -> tuple[FeatureCard, ...]:
        ahead, newest = self._ahead.get(feature), self._newest
        if ahead is not None:
            return (ahead[0],)
        if newest[0] != feature:
            newest = self._newest = feature, self._looked.cards([feature], EXAMPLES)
        return newest[1]

    def _some_rows(self, feature: int) -> list[Candidate]:
        """Rows that it fires on, evenly over its activations, the strongest first."""
        rows, values = self._codes.of(feature)
        if not len(rows):
            return []
        order = np.argsort(-values)
        picked = order[np.unique(np.linspace(0, len(order) - 1, EXAMPLES).astype(int))]
        keys = self._keys(rows[picked].tolist())
        starts = np.cumsum([0, *(len(block) for block in self._looked.blocks)])
        found = []
        for at in picked.tolist():
            number = int(rows[at])
            block = int(np.searchsorted(starts, number, side="right")) - 1
            of_row = self._looked.blocks[block].values[number - starts[block]]
            told = np.array(of_row, dtype=np.float32)
            found.append(Candidate(float(values[at]), keys[number], told))
        return found

    def _example(self, one: Example, bounds: tuple[float, float]) -> Document:
        found: Document = {"activation": plain(one.activation), "step": one.host_step}
        if one.tokens is not None:
            levels = one.tokens.levels or [float("nan")] * len(one.tokens.ids)
            found |= {
                "tokens": [self._text(token) for token in one.tokens.ids],
                "levels": [
                    plain(one.activation if at == one.tokens.at else level)
                    for at, level in enumerate(levels)
                ],
                "at": one.tokens.at,
            }
        elif one.observation is not None:
            width = len(one.observation)
            names = self._looked.names.of(width)
            drawn = observation(one.observation, self._environment_id, bounds, names)
            found["picture"] = tree(drawn)
        else:
            found["picture"] = tree(row(one.values, bounds))
        return found

    def pictures(self, feature: int) -> list[Any]:
        found = []
        for card in self._top_cards(feature):
            names = self._looked.names.of(len(card.coordinate_shifts))
            if card.field is not None:
                found.append(tree(field_map(card.field, names)))
            if card.coordinate_shifts:
                found.append(tree(strips(card.coordinate_shifts, names)))
        return found

    def histogram(self, feature: int) -> tuple[Floats, npt.NDArray[Any]]:
        _, values = self._codes.of(feature)
        most = float(values.max()) if len(values) else 1.0
        counts, edges = np.histogram(values, bins=BINS, range=(0.0, most))
        return edges, counts

    def density_over_time(self, feature: int) -> tuple[npt.NDArray[Any], Floats]:
        fired_N = np.zeros(self.rows)
        fired_N[self._codes.of(feature)[0]] = 1.0
        different, inverse_N = np.unique(self._step_N, return_inverse=True)
        moments = min(MOMENTS, len(different))
        moment_N = inverse_N * moments // len(different)
        rows = np.bincount(moment_N, minlength=moments)
        steps = np.bincount(moment_N, self._step_N, moments) / rows
        return steps, np.bincount(moment_N, fired_N, moments) / rows

    def activations_over_time(
        self, feature: int
    ) -> tuple[npt.NDArray[Any], Floats, npt.NDArray[Any]]:
        rows, values = self._codes.of(feature)
        if not len(rows):
            return np.zeros(0), np.zeros(1), np.zeros((0, 0))
        first, last = float(self._step_N.min()), float(self._step_N.max())
        parts = int(min(PARTS, last - first + 1))
        begins = first + (last + 1 - first) * np.arange(parts) / parts
        high = np.ceil(np.log2(values.max()))
        octave_M = np.clip(np.floor(np.log2(values)) - high + OCTAVES, 0, OCTAVES - 1).astype(int)
        part_M = np.searchsorted(begins, self._step_N[rows], side="right") - 1
        counts = np.bincount(part_M * OCTAVES + octave_M, minlength=parts * OCTAVES)
        edges = np.exp2(high + np.arange(-OCTAVES, 1.0))
        return begins, edges, counts.reshape(parts, OCTAVES)

    def cofiring(self, feature: int) -> list[tuple[int, float, float]]:
        rows, _ = self._codes.of(feature)
        if not len(rows):
            return []
        inside = np.concatenate(
            [np.arange(self._codes.start_N[n], self._codes.start_N[n + 1]) for n in rows.tolist()]
        )
        both_F = np.bincount(self._codes.feature[inside], minlength=self.d_sae)
        both_F[feature] = 0
        expected_F = len(rows) * np.maximum(self.density_F, 1e-12)
        lift_F = np.where(both_F >= LEAST_TOGETHER, both_F / expected_F, 0.0)
        best = np.argsort(-lift_F, kind="stable")[:COFIRING]
        return [(int(f), float(both_F[f]), float(lift_F[f])) for f in best if lift_F[f] > 1]
