"""Detects that two ranks send the same: the outputs of modules that tensor parallelism replicates.

A worker looks at the first packets of each hook once packets of two ranks have come: those of one step,
microbatch and call whose payloads have one checksum are the same. One is chance (a batch of zeros);
several of a pair of ranks, with none that differ, are said in the worker's log and in the run's summary. On a
mesh of data and tensor parallelism the ranks of each tensor-parallel group are alike and the groups differ.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.names import SIDE_STREAMS
from asys_bench.contracts.packet import ActivationPacket, checksum

log = logging.getLogger(__name__)

ENOUGH = 4
"""Calls of which a pair of ranks has sent the same."""
MOST_CALLS = 64
"""Looked at for each hook; most of the payload that is read of one, in bytes."""
MOST_BYTES = 1 << 16
_Call = tuple[int, int, int, int, int]
_Pair = tuple[int, int]


class _Hook:
    def __init__(self) -> None:
        self.calls: dict[_Call, dict[int, int]] = {}
        """Checksum by rank."""
        self.same: Counter[_Pair] = Counter()
        self.different: set[_Pair] = set()

    def add(self, call: _Call, source: int, sum_: int) -> None:
        seen = self.calls.setdefault(call, {})
        if source in seen:
            return
        for other, theirs in seen.items():
            pair = (min(other, source), max(other, source))
            if theirs == sum_:
                self.same[pair] += 1
            else:
                self.different.add(pair)
        seen[source] = sum_

    def alike(self) -> list[list[int]]:
        """Groups of ranks that have sent the same, once a pair of them has done so `ENOUGH` times."""
        pairs = sorted(pair for pair in self.same if pair not in self.different)
        if not any(self.same[pair] >= ENOUGH for pair in pairs):
            return []
        groups: list[list[int]] = []
        for pair in pairs:
            group = next((one for one in groups if pair[0] in one), None)
            if group is None:
                groups.append([*pair])
            elif pair[1] not in group:
                group.append(pair[1])
        return groups


class SameRows:
    """One worker's look at what it pulls."""

    def __init__(self, name_of: Callable[[int], str]) -> None:
        self._name_of = name_of
        self._sources: set[int] = set()
        self._hooks: dict[int, _Hook | None] = {}

    def look(self, packets: Sequence[ActivationPacket]) -> None:
        """At the packets of a lease; no views are kept."""
        if len(self._sources) < 2:
            self._sources |= {packets[0].source, packets[-1].source}
            if len(self._sources) < 2:
                return
        for packet in packets:
            hook = self._hook(packet.hook_id)
            if hook is not None and packet.payload.nbytes:
                self._compare(packet, hook)

    def _hook(self, hook_id: int) -> _Hook | None:
        if hook_id not in self._hooks:
            self._hooks[hook_id] = None if self._name_of(hook_id) in SIDE_STREAMS else _Hook()
        return self._hooks[hook_id]

    def _compare(self, packet: ActivationPacket, hook: _Hook) -> None:
        call = (packet.host_step, packet.microbatch, packet.call_index, packet.kind, packet.text)
        hook.add(call, packet.source, checksum(packet.payload[:MOST_BYTES]))
        groups = hook.alike()
        if groups:
            self._say(self._name_of(packet.hook_id), groups)
        if groups or len(hook.calls) > MOST_CALLS:
            self._hooks[packet.hook_id] = None

    @staticmethod
    def _say(name: str, groups: Sequence[Sequence[int]]) -> None:
        log.warning(
            "%s: ranks %s send the same rows. If the module gives the same on each of them (tensor "
            "parallelism), capture it once: hooks[].ranks: [%s], or the name of the mesh's dimension",
            name,
            " and ".join(", ".join(map(str, group)) for group in groups),
            ", ".join(str(group[0]) for group in groups),
        )


def watches(spec: WorkerSpec, workers: Sequence[WorkerSpec], *, partition: bool) -> bool:
    """Whether this worker is the one of several that looks: the first of a sink that takes every hook, or any
    where no sink does. partition: its sink's workers each have hooks of their own."""
    sinks = [one for one in workers if one.role == "sink"]
    alike = [one.name for one in sinks if one.plugin == spec.plugin]
    return len(alike) == len(sinks) if partition else spec.name == alike[0]
