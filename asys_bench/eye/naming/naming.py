"""Names for the features of one SAE: which ones, in which order, kept as they come, gone on with."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asys_bench.eye.features import Features
from asys_bench.eye.marks import Mark
from asys_bench.eye.naming.material import Material, Pool, material_of
from asys_bench.eye.naming.models import NamingModel
from asys_bench.eye.naming.prompts import name_in, naming_chat
from asys_bench.eye.naming.scoring import score_of, top_token_score
from asys_bench.eye.sae_view import SaeView
from asys_bench.rundir.feature_names import MOST_MODEL, ProposedName, read_names, write_names

KEEP_S = 5.0
"""Names are written at least this often, and at the end, however it comes."""


@dataclass(frozen=True)
class Named:
    """What came of one feature. proposed: None, and `why` says so."""

    feature: int
    top_token: str
    proposed: ProposedName | None
    why: str = ""
    kept: bool = True
    """False: another model's name, which is there, has a better score."""


class NothingToNameError(ValueError):
    """There are no texts to name features from; says why."""


class Naming:
    """Of one SAE of a run."""

    def __init__(
        self,
        run_dir: Path,
        view: SaeView,
        marks: Mapping[int, Mark],
        model: NamingModel,
    ) -> None:
        """
        Raises:
            NothingToNameError: the run has no rows of it, or they are no tokens.
            ReadingError: the names that are there are damaged.
        """
        if view.features is None:
            raise NothingToNameError(view.problem)
        if not any(view.features.top_tokens()):
            raise NothingToNameError("its rows are no tokens of a text: only texts are named")
        self._run_dir, self._view, self._model = run_dir, view, model
        self._features: Features = view.features
        self._marks = marks
        self._names = read_names(run_dir, view.label)
        self._new: dict[int, ProposedName] = {}
        self._kept_at = time.monotonic()
        self._pool: Pool | None = None

    def candidates(self, chosen: Collection[int], most: int) -> list[int]:
        """Features that are to be named: those that fire and have no name yet, pinned ones first, then from
        the most to the least frequent; of `chosen` alone where there are some."""
        density_F = self._features.density_F
        order = np.argsort(-density_F, kind="stable").tolist()
        firing = [feature for feature in order if density_F[feature] > 0]
        pinned = {feature for feature, mark in self._marks.items() if mark.pin}
        firing.sort(key=lambda feature: feature not in pinned)
        wanted = [feature for feature in firing if feature in chosen or not chosen]
        return [feature for feature in wanted if not self._is_named(feature)][:most]

    def _is_named(self, feature: int) -> bool:
        """By a person, or by this model in the feature's present life."""
        mark, known = self._marks.get(feature), self._names.get(feature)
        if mark is not None and mark.name:
            return True
        return (
            known is not None
            and known.model == self._model.about[:MOST_MODEL]
            and known.generation == self._life(feature)
        )

    def name(self, features: Sequence[int]) -> Iterator[Named]:
        """Name them one after another. What was found is kept, also where this ends early.

        Raises:
            NamingError: the model cannot be asked. OSError, ReadingError, ValueError: they are not kept.
        """
        try:
            for feature in features:
                yield self._name(feature)
                if time.monotonic() - self._kept_at > KEEP_S:
                    self._keep()
        finally:
            self._keep()

    def _name(self, feature: int) -> Named:
        material = material_of(self._features, feature, self._the_pool())
        if isinstance(material, str):
            return Named(feature, self._top_token(feature), None, material)
        name = name_in(self._model.answer(naming_chat(material.shown)))
        if not name:
            return Named(feature, material.top_token, None, "the model answered with no name")
        proposed = self._proposed(name, material)
        known = self._names.get(feature)
        same_life = known is not None and known.generation == proposed.generation
        kept = known is None or not same_life or proposed.score >= known.score
        if kept:
            self._names[feature] = self._new[feature] = proposed
        return Named(feature, material.top_token, proposed, kept=kept)

    def _proposed(self, name: str, material: Material) -> ProposedName:
        return ProposedName(
            name=name,
            score=score_of(name, material, self._model),
            baseline=top_token_score(material),
            graded=self._model.graded,
            model=self._model.about[:MOST_MODEL],
            checkpoint=self._view.checkpoint.name,
            generation=self._life(material.feature),
            shown=len(material.shown),
            fires=len(material.fires),
            silent=len(material.silent),
            unix_ns=time.time_ns(),
        )

    def _the_pool(self) -> Pool:
        if self._pool is None:
            firing = np.flatnonzero(self._features.density_F > 0).tolist()
            self._pool = Pool(self._features, firing, self._view.label)
        return self._pool

    def _top_token(self, feature: int) -> str:
        tops = self._features.top_tokens()[feature]
        return tops[0] if tops else ""

    def _life(self, feature: int) -> int:
        return self._view.generation(feature) or 0

    def _keep(self) -> None:
        """Beside what another process has written meanwhile."""
        if self._new:
            there = read_names(self._run_dir, self._view.label)
            write_names(self._run_dir, self._view.label, {**there, **self._new})
            self._new = {}
        self._kept_at = time.monotonic()
