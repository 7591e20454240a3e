"""Bringing together the packets of several hook points that saw the same forward pass.

A packet's moment is (source, shard, host step, weights version, microbatch, call index): hooks on
modules that are each called once per forward pass count their calls alike. Packets wait for those of
the other hooks, oldest out first.

A moment whose packets have different numbers of rows is no moment of one input, and one of which
each hook sent other rows (`token_sample` draws for each packet) is of no use: it is left out and counted,
and when most are so, the hooks are refused.

Hooks that share a coin (`contracts.coin`) keep a call together with the smallest of their rates, so a
joint row stands for 1 / min(rates) rows. Hooks with coins of their own, and all of earlier versions,
lose partners: it stands for 1 / (rate x rate x ...) rows.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from asys_bench.contracts.preprocessor import Positions
from asys_bench.sae.training.held_out import PacketKey

log = logging.getLogger(__name__)
LEAST_UNEQUAL = 16
"""Calls with different numbers of rows from which hooks may be refused."""


class Moment(NamedTuple):
    """When and where a packet was captured, as far as hooks share it."""

    source: int
    shard: int
    host_step: int
    weights_version: int
    microbatch: int
    call_index: int


@dataclass(frozen=True, slots=True)
class HookRows:
    """One hook's rows of a moment.

    places: which rows of what the module gave they are; None: all of them, in order.
    """

    rows: torch.Tensor
    key: PacketKey
    weight: float
    weights_version: int
    places: Positions | None = None

    def __len__(self) -> int:
        return self.rows.numel() // max(1, self.rows.shape[-1])


@dataclass(frozen=True, slots=True)
class JointRows:
    """All hooks' rows of a moment, in the order of the hooks; the key is the first packet's.

    weight: rows that each row stands for.
    """

    hooks: tuple[HookRows, ...]
    weight: float

    def __getitem__(self, part: slice) -> JointRows:
        """Some of the rows, of every hook alike (views)."""
        return replace(
            self, hooks=tuple(replace(hook, rows=hook.rows[part]) for hook in self.hooks)
        )

    @property
    def key(self) -> PacketKey:
        return self.hooks[0].key

    @property
    def weights_version(self) -> int:
        return self.hooks[0].weights_version

    def side_by_side(self) -> torch.Tensor:
        """float32[N, D_1 + ... + D_n]: what a crosscoder takes."""
        parts = [hook.rows.reshape(-1, hook.rows.shape[-1]).float() for hook in self.hooks]
        return torch.cat(parts, 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each hook."""
        return tuple(hook.rows.shape[-1] for hook in self.hooks)


class MomentMatcher:
    """Packets of several hooks in, joint rows out.

    hooks: at least two. shared_coin: whether one coin decided on all hooks' calls.
    most_waiting: packets that wait at once. refuse_after: packets without any match after which
    `problem` says what is wrong.
    """

    def __init__(
        self,
        hooks: Sequence[str],
        *,
        shared_coin: bool,
        most_waiting: int = 256,
        refuse_after: int = 4096,
    ) -> None:
        self.hooks = tuple(hooks)
        self._shared_coin = shared_coin
        self._most, self._refuse_after = most_waiting, refuse_after
        self._waiting: OrderedDict[Moment, dict[int, HookRows]] = OrderedDict()
        self._packets = 0
        self._offered = [0] * len(self.hooks)
        self.matched = 0
        self.unmatched = 0
        """Packets given up on: one of their moment never came, came too late, or had other rows."""
        self._unequal = 0
        self._counts: list[int] = []

    def offer(self, index: int, moment: Moment, rows: HookRows) -> JointRows | None:
        """Take a packet of `hooks[index]` (its rows are kept: no views); the joint rows if it was the
        last one that its moment waited for."""
        self._offered[index] += 1
        held = self._waiting.setdefault(moment, {})
        self._packets += index not in held
        held[index] = rows
        if len(held) == len(self.hooks):
            del self._waiting[moment]
            self._packets -= len(held)
            found = tuple(held[at] for at in range(len(self.hooks)))
            self._counts = [len(hook) for hook in found]
            if len(set(self._counts)) > 1 or not _are_of_one_place(found):
                self._leave_out(moment)
                return None
            self.matched += 1
            weights = [hook.weight for hook in found]
            return JointRows(found, max(weights) if self._shared_coin else math.prod(weights))
        while self._packets > self._most:
            _, oldest = self._waiting.popitem(last=False)
            self._packets -= len(oldest)
            self.unmatched += len(oldest)
        return None

    def _leave_out(self, moment: Moment) -> None:
        self._unequal += 1
        self.unmatched += len(self.hooks)
        if self._unequal == 1:
            log.warning(
                "%s have %s rows in one call (host step %d): such calls are left out and counted",
                list(self.hooks),
                self._counts if len(set(self._counts)) > 1 else "different",
                moment.host_step,
            )

    @property
    def problem(self) -> str | None:
        """Why hardly any moment is complete, with the fix; None while they are or may yet be."""
        most_are = self._unequal >= LEAST_UNEQUAL and self._unequal > self.matched
        if most_are and len(set(self._counts)) == 1:
            return (
                f"other rows of each of {list(self.hooks)} were sampled in most of their calls: "
                "token_sample draws for each packet, and a packet that one hook has not parts their "
                "draws. Give all of them the same `every`, or no token_sample"
            )
        if most_are:
            return (
                f"{list(self.hooks)} have different numbers of rows in most of their calls "
                f"({self._counts} in the last one): they are not of one input"
            )
        offered = sum(self._offered)
        if self.matched or offered < self._refuse_after:
            return None
        missing = [
            name for name, count in zip(self.hooks, self._offered, strict=True) if count == 0
        ]
        if missing:
            return (
                f"no packet of {', '.join(map(repr, missing))} in {offered} of the others of "
                f"{list(self.hooks)}: hook all of them, and let one worker have all "
                "(sinks.<name>.workers: 1)"
            )
        return (
            f"no packets of {list(self.hooks)} are of one moment, in {offered}: hook modules that are "
            "called equally often, with one coin (hooks[].sampling.coin: shared)"
        )


def _are_of_one_place(hooks: Sequence[HookRows]) -> bool:
    """Of hooks with as many rows each."""
    if all(hook.places is None for hook in hooks):
        return True
    everything = np.arange(len(hooks[0]), dtype=np.int64)
    places = [everything if hook.places is None else hook.places for hook in hooks]
    return all(np.array_equal(places[0], other) for other in places[1:])
