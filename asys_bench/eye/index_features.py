"""Features as a sink `feature_index` has kept them over the whole run (`rundir.feature_index`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
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
            tokens, counts_F = _strongest(*self._index.top_tokens())
            texts = iter([self._text(token) for token in tokens.tolist()])
            self._tops = [list(islice(texts, count)) for count in counts_F.tolist()]
        return self._tops

    @property
    def alike_F(self) -> Floats:
        if self._alike_F is None:
            tokens_FR = self._index.random_tokens()
            known, places_FR = np.unique(tokens_FR, return_inverse=True)
            plain = [_plain_text(self._text(token)) for token in known.tolist()]
            numbers = {text: number for number, text in enumerate(dict.fromkeys(plain))}
            plain_FR = np.array([numbers[text] for text in plain])[
                places_FR.reshape(tokens_FR.shape)
            ]
            tops = [_plain_text(tops[0]) if tops else "" for tops in self.top_tokens()]
            has_top_F = np.array([bool(tops) for tops in self.top_tokens()])
            top_F = np.array([numbers.get(text, -1) for text in tops])
            there_FR = tokens_FR >= 0
            same_F = ((plain_FR == top_F[:, None]) & there_FR).sum(axis=1)
            shown_F = there_FR.sum(axis=1)
            found_F = np.full(len(top_F), np.nan)
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
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Of each feature's top examples at most `TOPS` tokens, those with the largest sums of activations first.

    tokens_FT: negative where there is none. Returns the tokens, feature after feature, and counts [F].
    """
    feature_N, place_N = np.nonzero((tokens_FT >= 0) & (values_FT > 0))
    token_N = tokens_FT[feature_N, place_N].astype(np.int64)
    pair_N = feature_N * (token_N.max(initial=0) + 1) + token_N
    _, first_M, which_N = np.unique(pair_N, return_index=True, return_inverse=True)
    strength_M = np.bincount(which_N, values_FT[feature_N, place_N], minlength=len(first_M))
    order_M = np.lexsort((first_M, -strength_M, feature_N[first_M]))
    chosen_M = first_M[order_M]
    counts_F = np.bincount(feature_N[chosen_M], minlength=len(tokens_FT))
    begin_M = np.repeat(np.cumsum(counts_F) - counts_F, counts_F)
    kept_M = np.arange(len(chosen_M)) - begin_M < TOPS
    return token_N[chosen_M[kept_M]], np.minimum(counts_F, TOPS)


def _plain_text(token: str) -> str:
    return token.strip().casefold()
