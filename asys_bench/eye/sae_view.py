"""One SAE of a run as the views show it: the table of its features, one feature, and the search for some."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from asys_bench.eye.features import Document, Features, Floats
from asys_bench.eye.logits import NoLogitsError, Unembedding, promoted
from asys_bench.eye.marks import Mark
from asys_bench.eye.watch import plain
from asys_bench.reports.run_report.feature_figures import decoder_map
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.lives import Lives, read_lives

NEIGHBOURS, FOUND = 10, 200
HOW_TO_INDEX = (
    "This run keeps no feature index: figures and examples are of the newest archived rows alone. A sink of "
    "kind `feature_index` (sinks.index.kind: feature_index) keeps them over the whole run."
)


@dataclass
class SaeView:
    """features: None where nothing is archived; `problem` says why then.

    sae, lives: of the newest checkpoint, `checkpoint`.
    """

    label: str
    checkpoint: Path
    sae: SparseAutoencoder
    lives: Lives | None
    features: Features | None
    problem: str = ""
    _directions_FD: torch.Tensor | None = field(default=None, repr=False)
    _search: list[str] | None = field(default=None, repr=False)
    _density: list[float] | None = field(default=None, repr=False)

    def table(self, marks: Mapping[int, Mark]) -> Document:
        """All features, a list per column; None in a list: not known."""
        found: Document = {
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
            "marks": {str(feature): mark.model_dump() for feature, mark in marks.items()},
        }
        return found

    def _columns(self) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {}
        if self.features is not None:
            found["density"] = numbers(self.features.density_F)
            found["mean"] = numbers(self.features.mean_F)
            found["max"] = numbers(self.features.max_F)
        if self.lives is not None:
            found["age"] = [int(step) for step in self._ages()]
            found["drift"] = numbers(1.0 - self.lives.birth_cosine.numpy().astype(np.float64))
        return found

    def _ages(self) -> Floats:
        """Host steps since each feature's life began."""
        assert self.lives is not None
        born_F = self.lives.born_host_step.numpy().astype(np.float64)
        steps_W = self.lives.window_step
        newest = float(max([int(born_F.max(initial=0)), *steps_W.tolist()]))
        return newest - born_F

    def feature(
        self, number: int, mark: Mark, unembedding: Unembedding | str, vocabulary: Mapping[int, str]
    ) -> Document:
        """All about one feature. unembedding: or why there is none."""
        found: Document = {
            "sae": self.label,
            "feature": number,
            "d_sae": self.sae.d_sae,
            "checkpoint": self.checkpoint.name,
            "mark": mark.model_dump(),
            "problem": self.problem,
            "neighbours": self._neighbours(number),
            "logits": self._logits(number, unembedding, vocabulary),
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
            "top": features.examples(number, "top"),
            "random": features.examples(number, "random"),
            "pictures": features.pictures(number),
            "histogram": {"edges": numbers(edges), "counts": numbers(counts, 7)},
            "over_time": {"x": numbers(steps, 7), "y": numbers(density)},
            "cofiring": [
                {
                    "feature": other,
                    "count": plain(count, 7),
                    "lift": plain(lift),
                    "words": words[other],
                }
                for other, count, lift in features.cofiring(number)[:NEIGHBOURS]
            ],
        }
        for one in found["neighbours"]:
            one["words"] = words[one["feature"]]
        return found

    def _neighbours(self, number: int) -> list[Document]:
        """The features whose decoder rows point most nearly the same way."""
        if self._directions_FD is None:
            rows_FD = self.sae.W_dec.detach().float()
            self._directions_FD = torch.nn.functional.normalize(rows_FD, dim=1)
        cosine_F = self._directions_FD @ self._directions_FD[number]
        cosine_F[number] = -math.inf
        values, others = cosine_F.topk(min(NEIGHBOURS, len(cosine_F) - 1))
        return [
            {"feature": int(other), "cosine": plain(float(value))}
            for value, other in zip(values, others, strict=True)
        ]

    def _logits(
        self, number: int, unembedding: Unembedding | str, vocabulary: Mapping[int, str]
    ) -> Document:
        if isinstance(unembedding, str):
            return {"problem": unembedding}
        try:
            row_D = self.sae.W_dec[number].detach().float()
            found = promoted(unembedding.attribution(row_D), vocabulary)
        except NoLogitsError as error:
            return {"problem": str(error)}
        return {**found, "about": unembedding.about}

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

    def find(self, text: str, marks: Mapping[int, Mark]) -> list[Document]:
        """Features whose name, note, words or strongest tokens hold `text`, whatever its case.

        Names first, then features whose very token it is, then the others; the more often firing first.
        """
        wanted = text.strip().casefold()
        if not wanted:
            return []
        hits: list[tuple[int, float, int, str]] = []
        densities = self._densities()
        for number, mark in marks.items():
            if number < self.sae.d_sae and wanted in f"{mark.name}\n{mark.note}".casefold():
                hits.append((0, -densities[number], number, "name or note"))
        named = {number for _, _, number, _ in hits}
        for number, told in enumerate(self._texts()):
            if wanted in told and number not in named:
                exact = f"\n{wanted}\n" in told
                where = "its very token" if exact else "among what it fires on most"
                hits.append((1 if exact else 2, -densities[number], number, where))
        hits = heapq.nsmallest(FOUND, hits)
        words = self.features.words() if self.features is not None else []
        tokens = self.features.top_tokens() if self.features is not None else []
        return [
            {
                "sae": self.label,
                "feature": number,
                "where": where,
                "words": words[number] if words else "",
                "tokens": list(tokens[number])[:6] if tokens else [],
                "density": plain(-density),
                "name": marks[number].name if number in marks else "",
            }
            for _, density, number, where in hits
        ]

    def _densities(self) -> list[float]:
        if self._density is None:
            found_F = self.features.density_F if self.features is not None else None
            self._density = [0.0] * self.sae.d_sae if found_F is None else found_F.tolist()
        return self._density

    def _texts(self) -> Sequence[str]:
        """Of each feature its tokens and words, a line each, ready to be searched."""
        if self._search is None:
            if self.features is None:
                self._search = []
            else:
                told = zip(self.features.top_tokens(), self.features.words(), strict=True)
                self._search = [
                    "\n" + "\n".join(one.strip().casefold() for one in (*tokens, words)) + "\n"
                    if tokens or words
                    else ""
                    for tokens, words in told
                ]
        return self._search


def numbers(values: Floats, digits: int = 4) -> list[float | None]:
    """As JSON can say them."""
    return [plain(float(value), digits) for value in values]


def lives_in(checkpoint: Path) -> Lives | None:
    """The lives of a checkpoint's features; None where they are not known."""
    try:
        return read_lives(checkpoint)
    except (CheckpointError, OSError):
        return None
