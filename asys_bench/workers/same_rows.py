"""Detects that two ranks send the same: the outputs of modules that tensor parallelism replicates.

A worker looks at the first packets of each hook once packets of two ranks have come: those of one step,
microbatch and call whose payloads have one checksum are the same. One is chance (a batch of zeros);
several in a row, with none that differ, are said in the worker's log and in the run's summary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.names import SIDE_STREAMS
from asys_bench.contracts.packet import ActivationPacket, checksum

log = logging.getLogger(__name__)

ENOUGH = 4
"""Calls of which two ranks have sent the same."""
MOST_CALLS = 64
"""Looked at for each hook; most of the payload that is read of one, in bytes."""
MOST_BYTES = 1 << 16
_Call = tuple[int, int, int, int, int]


class _Hook:
    def __init__(self) -> None:
        self.calls: dict[_Call, tuple[int, int]] = {}
        self.same: set[tuple[int, int]] = set()
        self.found = 0


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
        part = packet.payload[:MOST_BYTES]
        seen = packet.source, checksum(part)
        before = hook.calls.setdefault(call, seen)
        if before[0] != packet.source:
            if before[1] != seen[1]:
                self._hooks[packet.hook_id] = None  # they differ: nothing to say of this hook
                return
            hook.found += 1
            hook.same.add((before[0], packet.source))
            if hook.found >= ENOUGH:
                self._hooks[packet.hook_id] = None
                self._say(self._name_of(packet.hook_id), hook)
        elif len(hook.calls) > MOST_CALLS:
            self._hooks[packet.hook_id] = None

    @staticmethod
    def _say(name: str, hook: _Hook) -> None:
        ranks = sorted({rank for pair in hook.same for rank in pair})
        log.warning(
            "%s: ranks %s send the same rows. If the module gives the same on each of them (tensor "
            "parallelism), capture it once: hooks[].ranks: [%d], or the name of the mesh's dimension",
            name,
            ", ".join(map(str, ranks)),
            ranks[0],
        )


def watches(spec: WorkerSpec, workers: Sequence[WorkerSpec], *, partition: bool) -> bool:
    """Whether this worker is the one of several that looks: the first of a sink that takes every hook, or any
    where no sink does. partition: its sink's workers each have hooks of their own."""
    sinks = [one for one in workers if one.role == "sink"]
    alike = [one.name for one in sinks if one.plugin == spec.plugin]
    return len(alike) == len(sinks) if partition else spec.name == alike[0]
