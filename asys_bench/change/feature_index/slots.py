"""Which examples stay: of each group (a feature, or one of its quantile bins) those with the largest keys.

Top examples have their activation as key. Random ones have ln(u) / weight, u in (0, 1) a hash of the row and
the feature: as `change.reservoir.rows`, a weighted sample without replacement that needs no generator, so
that a worker which is started again goes on as if nothing had happened.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from asys_bench.change.reservoir.rows import mixed

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def uniform(hash_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in (0, 1) of hashes."""
    return ((hash_N >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def random_keys(
    moment_N: npt.NDArray[np.uint64], feature_N: Ints, weight_N: npt.NDArray[np.float64]
) -> Floats:
    """ln(u) / weight of each pair of a row (its `moment` hash) and a feature."""
    u_N = uniform(mixed(moment_N ^ mixed(feature_N.astype(np.uint64))))
    return np.asarray(np.log(u_N) / weight_N, dtype=np.float32)


def place(
    keys_GS: Floats, least_G: Floats, group_N: Ints, key_N: Floats
) -> tuple[Ints, Ints, Ints]:
    """(candidate, group, slot) of the candidates that get a slot; their keys are put there.

    keys_GS: -inf where a slot is empty. least_G: the smallest key of each group; both are changed. Of equal
    keys the one that is there stays.

    The j-th largest candidate of a group gets the slot of the j-th smallest key where it is larger: as the
    ones fall and the others rise, these are the S largest of both together.
    """
    slots = keys_GS.shape[1]
    found = np.flatnonzero(key_N > least_G[group_N])
    if not len(found):
        return found, found, found
    found = found[np.lexsort((-key_N[found], group_N[found]))]
    group = group_N[found]
    begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    sizes = np.diff(np.r_[begins, len(group)])
    order = np.arange(len(group)) - np.repeat(begins, sizes)
    owner = np.repeat(np.arange(len(begins)), sizes)
    near = order < slots
    found, group, order, owner = found[near], group[near], order[near], owner[near]
    groups_M = group_N[found[order == 0]]
    slot = np.argsort(keys_GS[groups_M], axis=1, kind="stable")[owner, order]
    wins = key_N[found] > keys_GS[group, slot]
    found, group, slot = found[wins], group[wins], slot[wins]
    keys_GS[group, slot] = key_N[found]
    least_G[groups_M] = keys_GS[groups_M].min(axis=1)
    return found, group, slot
