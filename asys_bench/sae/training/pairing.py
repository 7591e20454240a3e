"""Bringing together the packets of two hook points that saw the same forward pass.

A packet's moment is (source, shard, host step, weights version, microbatch, call index): two hooks on
modules that are each called once per forward pass count their calls alike. Packets wait for their
partner, oldest out first.

Hooks that share a coin (`contracts.coin`) keep a call together with the smaller of their rates, so a pair
stands for 1 / min(rate, rate) rows. Hooks with coins of their own, and all of earlier versions, lose
partners: a pair stands for 1 / (rate x rate) rows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch

from asys_bench.sae.training.held_out import PacketKey


class Moment(NamedTuple):
    """When and where a packet was captured, as far as two hooks share it."""

    source: int
    shard: int
    host_step: int
    weights_version: int
    microbatch: int
    call_index: int


class Side(Enum):
    """Which of the two hooks."""

    INPUT = "input"
    OUTPUT = "output"

    @property
    def other(self) -> Side:
        return Side.OUTPUT if self is Side.INPUT else Side.INPUT


@dataclass(frozen=True, slots=True)
class Half:
    """One hook's rows of a moment."""

    rows: torch.Tensor
    key: PacketKey
    weight: float
    weights_version: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Both hooks' rows of a moment; the key is the input packet's.

    weight: rows that each row stands for.
    """

    input: Half
    output: Half
    weight: float


class PairMatcher:
    """Packets of both sides in, pairs out.

    shared_coin: whether one coin decided on both hooks' calls.
    most_waiting: packets that wait at once. refuse_after: packets without any pair after which
    `problem` says what is wrong.
    """

    def __init__(
        self,
        input_hook: str,
        output_hook: str,
        *,
        shared_coin: bool,
        most_waiting: int = 256,
        refuse_after: int = 4096,
    ) -> None:
        self.hooks = {Side.INPUT: input_hook, Side.OUTPUT: output_hook}
        self._shared_coin = shared_coin
        self._most, self._refuse_after = most_waiting, refuse_after
        self._waiting: OrderedDict[tuple[Moment, Side], Half] = OrderedDict()
        self._offered = {Side.INPUT: 0, Side.OUTPUT: 0}
        self.matched = 0
        self.unmatched = 0
        """Packets given up on: their partner never came, or came too late."""

    def offer(self, side: Side, moment: Moment, half: Half) -> Pair | None:
        """Take a packet (its rows are kept: no views); the pair if its partner was waiting."""
        self._offered[side] += 1
        partner = self._waiting.pop((moment, side.other), None)
        if partner is not None:
            self.matched += 1
            both = (half, partner) if side is Side.INPUT else (partner, half)
            weights = (half.weight, partner.weight)
            return Pair(*both, max(weights) if self._shared_coin else weights[0] * weights[1])
        self._waiting[moment, side] = half
        if len(self._waiting) > self._most:
            self._waiting.popitem(last=False)
            self.unmatched += 1
        return None

    @property
    def problem(self) -> str | None:
        """Why pairs cannot come about, with the fix; None while they do or may."""
        offered = self._offered
        if self.matched or sum(offered.values()) < self._refuse_after:
            return None
        for side, hook in self.hooks.items():
            if offered[side] == 0:
                return (
                    f"no packet of {hook!r} in {offered[side.other]} of {self.hooks[side.other]!r}: "
                    "hook both, and let one worker have both (sinks.<name>.workers: 1)"
                )
        return (
            f"no two of {offered[Side.INPUT]} + {offered[Side.OUTPUT]} packets of "
            f"{self.hooks[Side.INPUT]!r} and {self.hooks[Side.OUTPUT]!r} are of one moment: hook "
            "modules that are called equally often, with one coin (hooks[].sampling.coin: shared)"
        )
