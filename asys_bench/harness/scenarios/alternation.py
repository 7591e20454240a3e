"""Observed and unobserved blocks of one host, in turn, in one process."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable
from statistics import median

from asys_bench.contracts.scenario import ScenarioError
from asys_bench.contracts.stats import SlotField
from asys_bench.harness.judging.stats import hodges_lehmann
from asys_bench.run.session import ObservationSession


class Alternation:
    """Observed and unobserved blocks of host steps (off, on, on, off, ...), each pair a comparison.

    A process has its own speed for as long as it lives (where its memory lies, which core it got),
    which two processes side by side differ in by more than hooks cost. Within one it cancels out.
    Off means that nothing of ours runs: the hooks are gone and workers that ran are stopped.
    """

    def __init__(self, session: ObservationSession, block_steps: int, *, workers_run: bool) -> None:
        hooker = session.hooker
        if hooker is None:
            raise ScenarioError("nothing alternates without hooks")
        self._hooker, self._session, self._block_steps = hooker, session, block_steps
        self._workers_run = workers_run
        self._blocks: list[tuple[bool, list[int]]] = []

    @property
    def is_on(self) -> bool:
        """Whether the block that goes on is observed."""
        return bool(self._blocks) and self._blocks[-1][0]

    def begin(self) -> None:
        number = len(self._blocks)
        on = bool((number + number // 2) % 2)
        (self._hooker.attach if on else self._hooker.detach)()
        if self._workers_run:
            signal_workers(self._session, signal.SIGCONT if on else signal.SIGSTOP)
        self._blocks.append((on, []))

    def end(self) -> None:
        """Let the workers go on, so that they can drain."""
        if self._workers_run:
            signal_workers(self._session, signal.SIGCONT)

    def add(self, step_ns: int) -> None:
        """One more step of the block that began."""
        steps = self._blocks[-1][1]
        steps.append(step_ns)
        if len(steps) >= self._block_steps:
            self.begin()

    def slowdown(self) -> float:
        """The typical ratio of (a step with hooks / the step at the same place of the other block).

        The first step of a block is left out: it pays for the change.
        """
        return _typical(
            on / off
            for pair in self._pairs()
            for on, off in zip(pair[True][1:], pair[False][1:], strict=True)
        )

    def tail(self) -> float:
        """p99 of all steps with hooks / p99 of all without, each over the median step of its pair of
        blocks, which takes the drift of the machine out; of first steps as in `slowdown`."""
        steps: dict[bool, list[float]] = {True: [], False: []}
        for pair in self._pairs():
            usual = median(pair[True][1:] + pair[False][1:])
            for side, found in steps.items():
                found += [step / usual for step in pair[side][1:]]
        on, off = sorted(steps[True]), sorted(steps[False])
        return on[math.ceil(0.99 * len(on)) - 1] / off[math.ceil(0.99 * len(off)) - 1]

    def rate(self) -> float:
        """The typical ratio of (time of the block without / time of its pair's with hooks): steps per
        second with hooks over those without. Every step counts, the first one too."""
        return _typical(sum(pair[False]) / sum(pair[True]) for pair in self._pairs())

    def _pairs(self) -> list[dict[bool, list[int]]]:
        whole = [block for block in self._blocks if len(block[1]) == self._block_steps]
        pairs = [dict(pair) for pair in zip(whole[::2], whole[1::2], strict=False)]
        if not pairs:
            raise ScenarioError(
                f"no pair of blocks of {self._block_steps} steps was done; give it more samples "
                "or seconds, or fewer alternate_steps"
            )
        return pairs


def _typical(ratios: Iterable[float]) -> float:
    """Of ratios within one process, which scatter by noise alone."""
    return math.exp(hodges_lehmann([math.log(ratio) for ratio in ratios]))


def signal_workers(session: ObservationSession, number: signal.Signals) -> None:
    """Send a signal to every worker of the run; not to the host or the watchdog."""
    for name, slot in session.page.slots():
        pid = slot.get(SlotField.PID)
        if name not in ("host", "watchdog") and pid and pid != os.getpid():
            os.kill(pid, number)
