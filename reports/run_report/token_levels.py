"""How strongly a feature fires on each token around the one that it fires on most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from asys_bench.reports.run_report.archive_rows import RowBlock, RowKey, hash_keys
from asys_bench.reports.run_report.inputs import Tokens
from asys_bench.sae.architectures.base import SparseAutoencoder

CHUNK_ROWS = 1024
Place = tuple[int, RowKey, Tokens]
"""A feature, the row that it fires on, and that row's tokens."""


@torch.no_grad()
def token_levels(
    sae: SparseAutoencoder, blocks: Sequence[RowBlock], places: Sequence[Place]
) -> list[tuple[float, ...]]:
    """For each place the feature's activation on every token shown; NaN where its row is not there."""
    keys: list[RowKey] = []
    features: list[int] = []
    for feature, key, tokens in places:
        first = key[5] - tokens.at
        keys += [(*key[:5], first + index) for index in range(len(tokens.ids))]
        features += [feature] * len(tokens.ids)
    levels = np.full(len(keys), np.nan)
    if keys:
        wanted = hash_keys(np.array(keys, dtype=np.int64))
        found, rows = _rows_of(wanted, blocks)
        for start in range(0, len(found), CHUNK_ROWS):
            part = found[start : start + CHUNK_ROWS]
            x_BD = torch.from_numpy(rows[start : start + CHUNK_ROWS])
            acts_BF = sae.encode(torch.nan_to_num(x_BD, 0.0, 0.0, 0.0)).float()
            feature_B1 = torch.tensor([features[at] for at in part.tolist()]).unsqueeze(1)
            levels[part] = acts_BF.gather(1, feature_B1).squeeze(1).numpy()
    told, at = [], 0
    for _, _, tokens in places:
        told.append(tuple(levels[at : at + len(tokens.ids)].tolist()))
        at += len(tokens.ids)
    return told


def _rows_of(wanted: np.ndarray, blocks: Sequence[RowBlock]) -> tuple[np.ndarray, np.ndarray]:
    """(indices of `wanted` that are there, their rows float32[n, width])."""
    order = np.argsort(wanted)
    indices, rows = [], []
    for block in blocks:
        hashes = block.hashes
        at = np.flatnonzero(np.isin(hashes, wanted))
        for number in at.tolist():
            left = np.searchsorted(wanted, hashes[number], "left", sorter=order)
            right = np.searchsorted(wanted, hashes[number], "right", sorter=order)
            for index in order[left:right].tolist():  # a row may be shown for several features
                indices.append(index)
                rows.append(np.asarray(block.values[number], dtype=np.float32))
    if not indices:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)
    return np.array(indices, dtype=np.int64), np.stack(rows)
