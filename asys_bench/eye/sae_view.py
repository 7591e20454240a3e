"""One SAE of a run as the views show it: the table of its features, one feature, and the search for some."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asys_bench.eye.features import MOST_EXAMPLES, Document, Features, Floats
from asys_bench.eye.logits import NoLogitsError, Unembedding, promoted
from asys_bench.eye.marks import Mark
from asys_bench.eye.probe_links import ProbeLinks
from asys_bench.eye.proposed import NO_NAMES, Names, called, shown
from asys_bench.eye.search import Finder
from asys_bench.eye.watch import plain
from asys_bench.reports.run_report.feature_figures import decoder_map
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.lives import Lives, read_lives

NEIGHBOURS = 10
_POWERS = np.array([float(f"1e{n}") for n in range(301)])
HOW_TO_INDEX = (
    "This run keeps no feature index: figures and examples are of the newest archived rows alone. A sink of "
    "kind `feature_index` (sinks.index.kind: feature_index) keeps them over the whole run."
)


@dataclass
class SaeView:
    """features: None where nothing is archived; `problem` says why then.

    sae, lives: of the newest checkpoint, `checkpoint`. hook: whose rows it is of. probes: those of the hook.
    """

    label: str
    checkpoint: Path
    sae: SparseAutoencoder
    lives: Lives | None
    features: Features | None
    problem: str = ""
    hook: str = ""
    probes: ProbeLinks | None = None
    _directions_FD: torch.Tensor | None = field(default=None, repr=False)
    _finder: Finder | None = field(default=None, repr=False)
    _table: str | None = field(default=None, repr=False)
    _map: str | None = field(default=None, repr=False)

    def prepare(self) -> None:
        """Make what all questions need, so that none waits for it."""
        self.finder()
        self.table_text({}, "")

    def generation(self, number: int) -> int | None:
        """Which life a feature is in; None: there is no such feature."""
        if not 0 <= number < self.sae.d_sae:
            return None
        return 0 if self.lives is None else int(self.lives.generation[number])

    def table(self, marks: Mapping[int, Mark], names: Names = NO_NAMES) -> Document:
        """All features, a list per column; None in a list: not known."""
        return {**self._fixed(), **_own(marks, names)}

    def _fixed(self) -> Document:
        """What marks and names do not change."""
        return {
            "sae": self.label,
            "d_sae": self.sae.d_sae,
            "d_in": self.sae.d_in,
            "checkpoint": self.checkpoint.name,
            "about": self.features.about if self.features is not None else "",
            "problem": self.problem,
            "indexed": self.features is not None and self.features.kind == "index",
            "how": HOW_TO_INDEX,
            "columns": self._columns(),
            "words": list(self.features.words()) if self.features is not None else [],
            "probes": self.probes.labels() if self.probes is not None else [],
        }

    def table_text(self, marks: Mapping[int, Mark], problem: str, names: Names = NO_NAMES) -> str:
        """`table` as JSON. What marks do not change is written once: it takes a while for 24,576 features."""
        if self._table is None:
            self._table = ",".join(_pieces(self._fixed()))
        own = {**_own(marks, names), "marks_problem": problem}
        return f"{{{self._table},{_text(own)[1:]}"

    def _columns(self) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {}
        if self.features is not None:
            if (alike_F := self.features.alike_F) is not None:
                found["alike"] = numbers(alike_F)
            found["density"] = numbers(self.features.density_F)
            found["mean"] = numbers(self.features.mean_F)
            found["max"] = numbers(self.features.max_F)
        if self.lives is not None:
            found["age"] = [int(step) for step in self._ages()]
            found["drift"] = numbers(1.0 - self.lives.birth_cosine.numpy().astype(np.float64))
        if self.probes is not None:
            found |= self.probes.columns()
        return found

    def _ages(self) -> Floats:
        """Host steps since each feature's life began."""
        assert self.lives is not None
        born_F = self.lives.born_host_step.numpy().astype(np.float64)
        steps_W = self.lives.window_step
        newest = float(max([int(born_F.max(initial=0)), *steps_W.tolist()]))
        return newest - born_F

    def some_features(
        self,
        numbers_M: Sequence[int],
        marks: Mapping[int, Mark],
        unembedding: Unembedding | str,
        vocabulary: Mapping[int, str],
        most: tuple[int, int] = (MOST_EXAMPLES, MOST_EXAMPLES),
        names: Names = NO_NAMES,
    ) -> Iterator[Document]:
        """All about each of these; of many at once it takes less.

        unembedding: or why there is none. most: top and random examples of each.
        """
        if self.features is not None and len(numbers_M) > 1:
            self.features.look_ahead(numbers_M)
        neighbours = self._neighbours(numbers_M)
        logits = self._logits(numbers_M, unembedding, vocabulary)
        for number, near, told in zip(numbers_M, neighbours, logits, strict=True):
            yield self._feature(number, marks, names, near, told, most)

    def _feature(
        self,
        number: int,
        marks: Mapping[int, Mark],
        names: Names,
        neighbours: list[Document],
        logits: Document,
        most: tuple[int, int],
    ) -> Document:
        found: Document = {
            "sae": self.label,
            "feature": number,
            "d_sae": self.sae.d_sae,
            "checkpoint": self.checkpoint.name,
            "mark": marks.get(number, Mark()).model_dump(),
            "proposed": shown(names.get(number)),
            "problem": self.problem,
            "neighbours": neighbours,
            "logits": logits,
            "probes": self.probes.of(number) if self.probes is not None else [],
        }
        if self.lives is not None:
            turned = int(self.lives.turned_host_step[number])
            found["life"] = {
                "generation": int(self.lives.generation[number]),
                "born_step": int(self.lives.born_host_step[number]),
                "age": int(self._ages()[number]),
                "drift": plain(1.0 - float(self.lives.birth_cosine[number])),
                "turned_step": turned if turned >= 0 else None,
            }
        features = self.features
        if features is None:
            return found
        edges, counts = features.histogram(number)
        steps, density = features.density_over_time(number)
        words = features.words()
        found |= {
            "about": features.about,
            "indexed": features.kind == "index",
            "how": HOW_TO_INDEX,
            "words": words[number],
            "rows": features.rows,
            "density": plain(float(features.density_F[number])),
            "mean": plain(float(features.mean_F[number])),
            "max": plain(float(features.max_F[number])),
            "top": features.examples(number, "top", most[0]),
            "random": features.examples(number, "random", most[1]),
            "pictures": features.pictures(number),
            "histogram": {"edges": numbers(edges), "counts": numbers(counts, 7)},
            "over_time": {"x": numbers(steps, 7), "y": numbers(density)},
            "heat": self._heat(features, number),
            "cofiring": [
                {
                    "feature": other,
                    "count": plain(count, 7),
                    "lift": plain(lift),
                    "words": words[other],
                    "name": called(other, marks, names),
                }
                for other, count, lift in features.cofiring(number)[:NEIGHBOURS]
            ],
        }
        for one in found["neighbours"]:
            one["words"] = words[one["feature"]]
            one["name"] = called(one["feature"], marks, names)
        return found

    @staticmethod
    def _heat(features: Features, number: int) -> Document:
        """How strongly it fired when: of each part of the run the counts by activation."""
        begins, edges, counts_WB = features.activations_over_time(number)
        counts = [numbers(counts_B, 3) for counts_B in counts_WB]
        return {"x": numbers(begins, 7), "edges": numbers(edges), "counts": counts}

    def _directions(self) -> torch.Tensor:
        if self._directions_FD is None:
            rows_FD = self.sae.W_dec.detach().float()
            self._directions_FD = torch.nn.functional.normalize(rows_FD, dim=1)
        return self._directions_FD

    def _neighbours(self, numbers_M: Sequence[int]) -> list[list[Document]]:
        """The features whose decoder rows point most nearly the same way."""
        directions_FD = self._directions()
        chosen = torch.tensor(numbers_M, dtype=torch.int64)
        cosine_MF = directions_FD[chosen] @ directions_FD.T
        cosine_MF[torch.arange(len(chosen)), chosen] = -math.inf
        values_MK, others_MK = cosine_MF.topk(min(NEIGHBOURS, cosine_MF.shape[1] - 1))
        return [
            [
                {"feature": other, "cosine": plain(value)}
                for value, other in zip(values, others, strict=True)
            ]
            for values, others in zip(values_MK.tolist(), others_MK.tolist(), strict=True)
        ]

    def _logits(
        self,
        numbers_M: Sequence[int],
        unembedding: Unembedding | str,
        vocabulary: Mapping[int, str],
    ) -> list[Document]:
        if isinstance(unembedding, str):
            return [{"problem": unembedding} for _ in numbers_M]
        rows_MD = self.sae.W_dec[torch.tensor(numbers_M, dtype=torch.int64)].detach().float()
        try:
            logits_MV = unembedding.attribution(rows_MD)
        except NoLogitsError as error:
            return [{"problem": str(error)} for _ in numbers_M]
        told = (promoted(logits_V, vocabulary) for logits_V in logits_MV)
        return [{**one, "about": unembedding.about} for one in told]

    def decoder_map(self) -> Document:
        """Every feature's decoder row on the two principal axes of all of them."""
        found = decoder_map(self.sae)
        if found is None:
            return {"x": [], "y": [], "explained": []}
        return {
            "x": numbers(found.xy_F2[:, 0], 3),
            "y": numbers(found.xy_F2[:, 1], 3),
            "explained": numbers(np.array(found.explained)),
        }

    def decoder_map_text(self) -> str:
        """The same as JSON, made once for each checkpoint."""
        if self._map is None:
            self._map = _text(self.decoder_map())
        return self._map

    def find(self, text: str, marks: Mapping[int, Mark], names: Names = NO_NAMES) -> list[Document]:
        """As `search.Finder.find`."""
        return self.finder().find(text, marks, names)

    def finder(self) -> Finder:
        """The search over its features."""
        if self._finder is None:
            self._finder = Finder(self.label, self.sae.d_sae, self.features)
        return self._finder


def _own(marks: Mapping[int, Mark], names: Names) -> Document:
    """Of the table, what people and a model call its features."""
    return {
        "marks": {str(feature): mark.model_dump() for feature, mark in marks.items()},
        "names": {str(feature): shown(name) for feature, name in names.items()},
    }


def numbers(values: Floats, digits: int = 4) -> list[float | None]:
    """As JSON can say them: so many significant digits, None for what is not known."""
    told = np.asarray(values, dtype=np.float64)
    known = np.isfinite(told)
    size = np.where(known & (told != 0), np.abs(told), 1.0)
    places = np.clip(digits - 1 - np.floor(np.log10(size)), -300, 300).astype(np.int64)
    # Both divide or multiply by a power of ten that is exact where the result is the shortest decimal.
    up, down = _POWERS[np.maximum(places, 0)], _POWERS[np.maximum(-places, 0)]
    rounded = np.rint(np.where(known, told, 0.0) / down * up) / up * down
    return [
        value if is_known else None
        for value, is_known in zip(rounded.tolist(), known.tolist(), strict=True)
    ]


def _pieces(document: Document) -> Iterator[str]:
    """Its entries as JSON, one after another: other threads go on between them."""
    for name, value in document.items():
        inside = f"{{{','.join(_pieces(value))}}}" if isinstance(value, dict) else _text(value)
        yield f"{json.dumps(name)}:{inside}"


def _text(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def lives_in(checkpoint: Path) -> Lives | None:
    """The lives of a checkpoint's features; None where they are not known."""
    try:
        return read_lives(checkpoint)
    except (CheckpointError, OSError):
        return None
