"""What the eyepiece asks of an SAE's features, wherever the answers come from.

`index_features` answers from the files of a sink `feature_index`, which has seen the whole run;
`archive_features` applies the newest checkpoint to the newest archived rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Document = dict[str, Any]
Floats = npt.NDArray[np.floating[Any]]
MOST_EXAMPLES = 24


class Features(Protocol):
    """The features 0..d_sae-1 of one SAE."""

    kind: str
    """"index" or "archive"."""

    @property
    def d_sae(self) -> int: ...

    @property
    def rows(self) -> int:
        """Rows that the figures are over."""

    @property
    def about(self) -> str:
        """Which rows and which weights, for a person."""

    @property
    def density_F(self) -> Floats: ...

    @property
    def mean_F(self) -> Floats:
        """Mean activation while active."""

    @property
    def max_F(self) -> Floats: ...

    def words(self) -> Sequence[str]:
        """What each feature fires on most, in words or as its top token; "" where nothing says."""

    def top_tokens(self) -> Sequence[Sequence[str]]:
        """Texts of the tokens that each feature fires on most, its strongest first; empty: no tokens."""

    @property
    def alike_F(self) -> Floats | None:
        """Share of its random examples that are of its strongest token, whatever the case and the spaces: of
        its firings about as many. NaN: it has none; None: there are none at all."""

    def examples(self, feature: int, kind: str, most: int = MOST_EXAMPLES) -> list[Document]:
        """kind: "top" or "random". Of each row: activation, step, row, and tokens (`tokens`, `levels`,
        `at`) or a `picture`."""

    def pictures(self, feature: int) -> list[Any]:
        """Trees of pictures of the whole feature."""

    def histogram(self, feature: int) -> tuple[Floats, npt.NDArray[Any]]:
        """(edges, counts) of its activations while active."""

    def density_over_time(self, feature: int) -> tuple[npt.NDArray[Any], Floats]:
        """(host steps, density)."""

    def activations_over_time(
        self, feature: int
    ) -> tuple[npt.NDArray[Any], Floats, npt.NDArray[Any]]:
        """(host steps at which parts of the run begin [n], edges of octaves of activations [m + 1],
        counts [n, m])."""

    def look_ahead(self, features: Sequence[int]) -> None:
        """These are asked for next, one after another: what reads them together takes less."""

    def cofiring(self, feature: int) -> list[tuple[int, float, float]]:
        """(other feature, rows of both, lift: how many times as often as by chance)."""
