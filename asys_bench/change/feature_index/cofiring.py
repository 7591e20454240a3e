"""Which features fire in the same rows: a sketch of `PARTNERS` counters a feature.

Unbiased space saving (Ting 2018, "Data sketches for disaggregated subset sum and frequent item estimation"):
a partner without a counter adds its count c to the smallest one, m, and takes its label with probability
c / (m + c). Frequent partners keep their counters; the estimates of all are unbiased as far as new partners
are looked at: of a batch, a feature takes the `ROUNDS` most frequent new ones.

Of a row with K active features each looks at `LOOKS` others, drawn by a hash and weighed back, so that a row
costs K x LOOKS pairs and not K x K.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from asys_bench.change.feature_index.slots import Floats, Ints, uniform
from asys_bench.change.reservoir.rows import mixed

LOOKS = 2
ROUNDS = 4
_BLOCK = 1 << 14


def count_partners(
    partner_FP: npt.NDArray[np.int32],
    together_FP: Floats,
    offset_R: Ints,
    feature_N: Ints,
    weight_R: npt.NDArray[np.float64],
    moment_R: npt.NDArray[np.uint64],
) -> None:
    """Add the rows of a batch (features as CSR by row) to the counters."""
    pair_L, count_L = _looked_at(len(partner_FP), offset_R, feature_N, weight_R, moment_R)
    feature_L, other_L = np.divmod(pair_L, len(partner_FP))
    slot_L = np.full(len(pair_L), -1, np.int64)
    for at in range(0, len(pair_L), _BLOCK):
        block = slice(at, at + _BLOCK)
        same = partner_FP[feature_L[block]] == other_L[block, None]
        slot_L[block] = np.where(same.any(1), same.argmax(1), -1)
    there = slot_L >= 0
    together_FP[feature_L[there], slot_L[there]] += count_L[there].astype(np.float32)
    new = np.flatnonzero(~there)
    if not len(new):
        return
    hash_L = mixed(pair_L[new].astype(np.uint64) ^ moment_R[0])
    order = np.lexsort((hash_L, -count_L[new], feature_L[new]))
    new, hash_L = new[order], hash_L[order]
    feature_L, other_L, count_L = feature_L[new], other_L[new], count_L[new]
    begins = np.flatnonzero(np.r_[True, feature_L[1:] != feature_L[:-1]])
    place_L = np.arange(len(new)) - np.repeat(begins, np.diff(np.r_[begins, len(new)]))
    for turn in range(ROUNDS):
        now = np.flatnonzero(place_L == turn)
        if not len(now):
            break
        feature, count = feature_L[now], count_L[now]
        slot = together_FP[feature].argmin(1)
        total = together_FP[feature, slot] + count
        takes = uniform(hash_L[now]) * total < count
        together_FP[feature, slot] = total.astype(np.float32)
        partner_FP[feature[takes], slot[takes]] = other_L[now[takes]].astype(np.int32)


def _looked_at(
    features: int,
    offset_R: Ints,
    feature_N: Ints,
    weight_R: npt.NDArray[np.float64],
    moment_R: npt.NDArray[np.uint64],
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(feature x F + other, weighted rows with both) of each different pair that was looked at."""
    size_R = np.diff(offset_R)
    row_N = np.repeat(np.arange(len(size_R)), size_R)
    others_N, begin_N = size_R[row_N] - 1, offset_R[row_N]
    here_N = np.arange(len(feature_N)) - begin_N
    all_N = others_N <= LOOKS
    weight_N = weight_R[row_N] * np.where(all_N, 1.0, others_N / LOOKS)
    hash_N = mixed(moment_R[row_N] ^ mixed(feature_N.astype(np.uint64) + np.uint64(1 << 40)))
    pairs, weights = [], []
    for look in range(LOOKS):
        hash_N = mixed(hash_N)
        drawn_N = (uniform(hash_N) * np.maximum(others_N, 1)).astype(np.int64)
        step_N = np.where(all_N, look, drawn_N)
        real = step_N < others_N
        other_N = feature_N[begin_N + (here_N + 1 + step_N) % np.maximum(size_R[row_N], 1)]
        pairs.append((feature_N * features + other_N)[real])
        weights.append(weight_N[real])
    pair_L, of_L = np.unique(np.concatenate(pairs), return_inverse=True)
    count_L = np.bincount(of_L.reshape(-1), np.concatenate(weights), len(pair_L))
    return pair_L.astype(np.int64), count_L.astype(np.float64)


def forget(
    partner_FP: npt.NDArray[np.int32], together_FP: Floats, gone_F: npt.NDArray[np.bool_]
) -> None:
    """These features are others now: their counters, and those of others that count them, are empty."""
    empty_FP = gone_F[np.maximum(partner_FP, 0)] & (partner_FP >= 0)
    empty_FP[gone_F] = True
    partner_FP[empty_FP], together_FP[empty_FP] = -1, 0.0
