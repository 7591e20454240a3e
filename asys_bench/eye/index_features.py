"""Features as a sink `feature_index` has kept them over the whole run (`rundir.feature_index`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.eye.features import MOST_EXAMPLES, Document, Floats
from asys_bench.eye.watch import plain
from asys_bench.rundir.feature_index import Example, FeatureIndex
from asys_bench.rundir.feature_latest import latest_firing
from asys_bench.rundir.live_run import ReadingError

TOPS = 8


def open_index(run_dir: Path, hook: str) -> FeatureIndex | None:
    """The index of a hook's SAE; None where the run keeps none, or it cannot be read yet."""
    try:
        return FeatureIndex.open(run_dir, hook)
    except (ReadingError, OSError, ValueError, KeyError):
        return None


class IndexFeatures:
    """`features.Features` of an index. vocabulary: token id -> text."""

    kind = "index"

    def __init__(self, index: FeatureIndex, vocabulary: Mapping[int, str]) -> None:
        self._index, self._vocabulary = index, vocabulary
        self._tops: list[list[str]] | None = None
        self._alike_F: Floats | None = None

    def is_of(self, index: FeatureIndex) -> bool:
        """Whether `index` was written at the same moment as this one's."""
        mine = self._index
        return (mine.rows, mine.weights_step) == (index.rows, index.weights_step)

    @property
    def d_sae(self) -> int:
        return self._index.d_sae

    @property
    def rows(self) -> int:
        return self._index.rows

    @property
    def about(self) -> str:
        return (
            f"{self.rows:,} rows of the whole run, by the sink feature_index; its newest weights are "
            f"those of trainer step {self._index.weights_step:,}"
        )

    @property
    def density_F(self) -> Floats:
        return self._index.density_F

    @property
    def mean_F(self) -> Floats:
        return self._index.mean_F

    @property
    def max_F(self) -> Floats:
        return self._index.max_F

    def words(self) -> Sequence[str]:
        return [tokens[0] if tokens else "" for tokens in self.top_tokens()]

    def top_tokens(self) -> Sequence[Sequence[str]]:
        if self._tops is None:
            tokens_FT, values_FT = self._index.top_tokens()
            pairs = zip(tokens_FT.tolist(), values_FT.tolist(), strict=True)
            self._tops = [self._strongest(tokens, values) for tokens, values in pairs]
        return self._tops

    @property
    def alike_F(self) -> Floats:
        if self._alike_F is None:
            pairs = zip(self.top_tokens(), self._index.random_tokens().tolist(), strict=True)
            self._alike_F = np.array([self._alike(tops, tokens) for tops, tokens in pairs])
        return self._alike_F

    def _alike(self, tops: Sequence[str], tokens: Sequence[int]) -> float:
        shown = [_plain_text(self._text(token)) for token in tokens if token >= 0]
        return shown.count(_plain_text(tops[0])) / len(shown) if tops and shown else math.nan

    def _strongest(self, tokens: Sequence[int], values: Sequence[float]) -> list[str]:
        """Of its top examples, the token with the largest sum of activations first."""
        strength: dict[int, float] = {}
        for token, value in zip(tokens, values, strict=True):
            if token >= 0 and value > 0:
                strength[token] = strength.get(token, 0.0) + value
        best = sorted(strength, key=lambda token: -strength[token])[:TOPS]
        return [self._text(token) for token in best]

    def _text(self, token: int) -> str:
        return self._vocabulary.get(int(token), f"<{int(token)}>")

    def examples(self, feature: int, kind: str, most: int = MOST_EXAMPLES) -> list[Document]:
        if most < 1:
            return []
        if kind == "random":
            found = self._index.examples(feature, "random")
            every = max(1, -(-len(found) // most))  # of each quantile some
        else:
            found, every = self._index.examples(feature), 1
        return [self._example(one) for one in found[::every][:most]]

    def _example(self, one: Example) -> Document:
        found: Document = {
            "activation": plain(float(one.activation)),
            "quantile": one.quantile_bin,
            "step": int(one.host_step),
            "source": int(one.source),
            "row": int(one.row),
        }
        if one.tokens is not None and one.activations is not None:
            found["tokens"] = [self._text(token) for token in one.tokens]
            found["levels"] = [plain(float(level)) for level in one.activations]
            found["at"] = int(one.position)
        return found

    def pictures(self, feature: int) -> list[Any]:
        return []

    def histogram(self, feature: int) -> tuple[Floats, npt.NDArray[Any]]:
        return self._index.histogram(feature)

    def density_over_time(self, feature: int) -> tuple[npt.NDArray[Any], Floats]:
        return self._index.density_over_time(feature)

    def activations_over_time(
        self, feature: int
    ) -> tuple[npt.NDArray[Any], Floats, npt.NDArray[Any]]:
        return self._index.activations_over_time(feature)

    def look_ahead(self, features: Sequence[int]) -> None:
        pass

    def latest(self, run_dir: Path, feature: int) -> Document | None:
        """The row in which it fired last, of a run that goes on the newest."""
        found = latest_firing(run_dir, self._index, feature)
        if found is None:
            return None
        token = self._text(found.token) if found.token >= 0 else None
        return {"step": found.host_step, "activation": plain(found.activation), "token": token}

    def cofiring(self, feature: int) -> list[tuple[int, float, float]]:
        return self._index.cofiring(feature)


def _plain_text(token: str) -> str:
    return token.strip().casefold()
