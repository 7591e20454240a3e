"""The tokens that activate each feature of an SAE most, from the archive of a text model's run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.open_run import Run
from asys_bench.rundir.token_rows import token_rows

CONTEXT = 5
"""Tokens shown before and after."""
BATCH_ROWS = 4096
_Part = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
"""Token ids and positions of one forward call."""


@dataclass(frozen=True, slots=True)
class TopToken:
    """One occurrence. `before` and `after` are its neighbours in the same sequence."""

    activation: float
    token_id: int
    text: str
    position: int
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FeatureTokens:
    """A feature, how often it was active (share of rows) and what activated it most."""

    feature: int
    density: float
    top: tuple[TopToken, ...]


def top_tokens(
    run: Run,
    hook: str,
    features: Sequence[int] | None = None,
    *,
    tokens: int = 10,
    most_features: int = 20,
    max_rows: int = 200_000,
) -> list[FeatureTokens]:
    """For each feature of the hook's newest SAE, the archived tokens with its largest activations.

    features: which ones; None takes the `most_features` with the largest single activations.
    max_rows: archived rows that are read, from the first.

    Raises:
        ReadingError: no SAE, archive or tokens of this hook yet.
    """
    sae = run.sae(hook)
    parts: list[_Part] = []
    best_FK = torch.zeros(sae.d_sae, 0)
    where_FK = torch.zeros(sae.d_sae, 0, dtype=torch.int64)
    active_F = torch.zeros(sae.d_sae, dtype=torch.int64)
    rows = 0
    for part in token_rows(ArchiveView(run.path, "last"), hook):
        parts.append((part.token_id_N, part.position_N))
        values_ND = torch.from_numpy(np.array(part.values_ND, dtype=np.float32))
        for start in range(0, len(values_ND), BATCH_ROWS):
            acts_BF = sae.encode(values_ND[start : start + BATCH_ROWS])
            active_F += (acts_BF > 0).sum(0)
            index_B = torch.arange(len(acts_BF)) + rows + start
            both = torch.cat([best_FK, acts_BF.t()], dim=1)
            index = torch.cat([where_FK, index_B.expand(sae.d_sae, -1)], dim=1)
            best_FK, order_FK = both.topk(min(tokens, both.shape[1]), dim=1)
            where_FK = index.gather(1, order_FK)
        rows += len(values_ND)
        if rows >= max_rows:
            break
    if not rows:
        raise ReadingError(f"the archive has no rows of {hook!r} with tokens yet")
    if features is None:
        order = best_FK[:, 0].argsort(descending=True)[:most_features]
        features = [int(feature) for feature in order if best_FK[feature, 0] > 0]
    text = _Text(run, parts)
    return [
        FeatureTokens(
            feature,
            float(active_F[feature]) / rows,
            tuple(
                text.token(int(row), float(value))
                for value, row in zip(best_FK[feature], where_FK[feature], strict=True)
                if value > 0
            ),
        )
        for feature in features
    ]


class _Text:
    """Token texts by row number over all parts."""

    def __init__(self, run: Run, parts: Sequence[_Part]) -> None:
        self._vocabulary = run.vocabulary
        self._ids = np.concatenate([ids_N for ids_N, _ in parts])
        self._positions = np.concatenate([positions_N for _, positions_N in parts])
        self._part = np.repeat(np.arange(len(parts)), [len(ids_N) for ids_N, _ in parts])

    def token(self, row: int, activation: float) -> TopToken:
        before = [self._word(row - step) for step in self._run_of(row, -1)]
        after = [self._word(row + step) for step in self._run_of(row, 1)]
        return TopToken(
            activation,
            int(self._ids[row]),
            self._word(row),
            int(self._positions[row]),
            tuple(reversed(before)),
            tuple(after),
        )

    def _run_of(self, row: int, direction: int) -> range:
        """Steps in `direction` that stay in the sequence: same call, consecutive positions."""
        steps = 0
        while steps < CONTEXT:
            at = row + direction * (steps + 1)
            if not 0 <= at < len(self._ids) or self._part[at] != self._part[row]:
                break
            if self._positions[at] != self._positions[row] + direction * (steps + 1):
                break
            steps += 1
        return range(1, steps + 1)

    def _word(self, row: int) -> str:
        token_id = int(self._ids[row])
        return self._vocabulary[token_id] if self._vocabulary is not None else f"<{token_id}>"
