"""A small run to read: a page with a host, a trainer and an archiver, and a bus's account."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.system.process import own_clock

HOOK = "policy.net.0"


@dataclass
class SmallRun:
    page: StatsPage
    dropped: dict[str, int] = field(default_factory=lambda: {"full": 0})

    def host_steps(self, n: int = 100, latency_ns: int = 20_000) -> None:
        host = self.page.slot("host")
        host.counter("host_steps").add(n)
        host.gauge("host_reward_mean").set(150.5)
        host.counter("hook_captured", hook=HOOK).add(n)
        host.counter("hook_bytes", hook=HOOK).add(64 * n)
        host.gauge("hook_sampling_rate", hook=HOOK).set(1.0)
        for _ in range(n):
            host.histogram("hook_latency_ns", hook=HOOK).record(latency_ns)

    def train(self, fvu: float = 0.15) -> None:
        trainer = self.page.slot("trainer-0")
        trainer.counter("sae_rows", hook=HOOK).add(1000)
        trainer.counter("sae_steps", hook=HOOK).add(2)
        for name, value in (("sae_loss", 0.5), ("sae_fvu", fvu), ("sae_l0", 8.0)):
            trainer.gauge(name, hook=HOOK).set(value)
        trainer.gauge("sae_dead_ratio", hook=HOOK).set(0.05)

    def set_worker(self, name: str, state: WorkerState, restarts: int = 0) -> None:
        slot = self.page.slot(name)
        slot.state = state
        slot.set(SlotField.RESTARTS, restarts)
        slot.set(SlotField.INCARNATION, restarts)
        slot.set(SlotField.CLOCK, own_clock())
        slot.beat()

    def account(self) -> BusAccount:
        produced = self.page.slot("host").counter("hook_captured", hook=HOOK).value
        dropped = sum(self.dropped.values())
        train = GroupAccount("train", produced - 3, 1, 0, 0, 2)
        archive = GroupAccount("archive", produced, 0, 0, 4, 0)
        return BusAccount(produced + dropped, dict(self.dropped), 64 * produced, (train, archive))


@pytest.fixture
def run() -> Iterator[SmallRun]:
    page = StatsPage.create(["host", "watchdog", "monitor-log", "trainer-0", "archive-0"])
    page.run_state = RunState.RUNNING
    yield SmallRun(page)
    page.close()
