"""Features as a sink `feature_index` has kept them over the whole run (`rundir.feature_index`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.eye.features import MOST_EXAMPLES, Document, Floats
from asys_bench.eye.haystack import Texts
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
        self._tops: Texts | None = None
        self._words: list[str] | None = None
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
        if self._words is None:
            tops = self.top_tokens()
            known = [*tops.known, ""]  # the last is that of -1
            self._words = [known[number] for number in tops.number_FK[:, 0].tolist()]
        return self._words

    def top_tokens(self) -> Texts:
        if self._tops is None:
            token_FK = _strongest(*self._index.top_tokens())
            known_U, number_FK = _numbered(token_FK)
            self._tops = Texts([self._text(token) for token in known_U.tolist()], number_FK)
        return self._tops

    @property
    def alike_F(self) -> Floats:
        if self._alike_F is None:
            tops = self.top_tokens()
            known_U, number_FR = _numbered(self._index.random_tokens())
            plain = [_plain_text(self._text(token)) for token in known_U.tolist()]
            numbers = {text: number for number, text in enumerate(dict.fromkeys(plain))}
            plain_FR = np.array([*(numbers[text] for text in plain), -1])[number_FR]
            top_U = np.array([*(numbers.get(_plain_text(text), -1) for text in tops.known), -1])
            top_F = top_U[tops.number_FK[:, 0]]
            there_FR = number_FR >= 0
            same_F = ((plain_FR == top_F[:, None]) & there_FR).sum(axis=1)
            shown_F = there_FR.sum(axis=1)
            found_F = np.full(len(top_F), np.nan)
            has_top_F = tops.number_FK[:, 0] >= 0
            np.divide(same_F, shown_F, out=found_F, where=has_top_F & (shown_F > 0))
            self._alike_F = found_F
        return self._alike_F

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


def _strongest(
    tokens_FT: npt.NDArray[Any], values_FT: npt.NDArray[Any]
) -> npt.NDArray[np.integer[Any]]:
    """Of each feature's top examples at most `TOPS` tokens, those with the largest sums of activations first;
    -1 after the last.

    tokens_FT: negative where there is none.
    """
    there_FT = (tokens_FT >= 0) & (values_FT > 0)
    token_FT = np.where(there_FT, tokens_FT, -1)
    order_FT = np.argsort(token_FT, axis=1, kind="stable")
    sorted_FT = np.take_along_axis(token_FT, order_FT, 1)
    value_FT = np.where(there_FT, values_FT, 0.0).astype(np.float64)
    value_FT = np.take_along_axis(value_FT, order_FT, 1)
    begins_FT = np.ones(sorted_FT.shape, bool)
    begins_FT[:, 1:] = sorted_FT[:, 1:] != sorted_FT[:, :-1]
    # The sum of a token stands where the token came first, so that of equal ones the first comes first.
    strength_FT = np.zeros(sorted_FT.shape)
    first_M = order_FT[begins_FT]
    strength_FT[np.nonzero(begins_FT)[0], first_M] = np.add.reduceat(
        value_FT.reshape(-1), np.flatnonzero(begins_FT)
    )
    best_FK = np.argsort(-strength_FT, axis=1, kind="stable")[:, :TOPS]
    strong_FK = np.take_along_axis(strength_FT, best_FK, 1) > 0
    return np.where(strong_FK, np.take_along_axis(token_FT, best_FK, 1), -1)


def _numbered(
    tokens: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.int64]]:
    """(the different tokens, the number of each token among them); negative ones are none, of number -1."""
    known_U = np.unique(tokens)
    known_U = known_U[known_U >= 0]
    return known_U, np.where(tokens >= 0, np.searchsorted(known_U, tokens), -1)


def _plain_text(token: str) -> str:
    return token.strip().casefold()
