"""A forwarder and a receiver in this process, over real buses and a real socket on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from asys_bench.cluster.forwarder import ForwarderWorker
from asys_bench.cluster.options import ForwarderOptions, ReceiverOptions
from asys_bench.cluster.receiver import ReceiverHost
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusPlugin,
    BusRequest,
    BusSubscription,
    Delivery,
    GroupSpec,
)
from asys_bench.contracts.host import Fed, Feed, HostResult
from asys_bench.contracts.origin import ORIGIN, OriginLease
from asys_bench.contracts.packet import DTYPE_CODE, ActivationPacket, PacketMeta
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import Slot, StatsPage
from asys_bench.registry import registry
from asys_bench.workers.shard_bus import interned_names

U8 = 5
HOOKS = ("layer.0", "layer.1")
PATIENCE_S = 60.0
CONFIG = {
    "host": {"kind": "synthetic"},
    "hooks": [{"match": "*"}],
    "sinks": {"remote": {"kind": "forwarder", "options": {"to": "tcp://127.0.0.1:1"}}},
}
"""Of a host's run."""


def make_bus(
    groups: Iterable[str],
    names: Iterable[str],
    *,
    shards: int = 1,
    capacity_bytes: int = 16 << 20,
    backend: str = "cpp_spmc",
) -> BaseDataBus:
    plugin = registry("backend").get(backend, BusPlugin)
    request = BusRequest(
        groups=tuple(GroupSpec(group, Delivery.AT_LEAST_ONCE) for group in groups),
        shards=shards,
        capacity_packets=4096,
        capacity_bytes=capacity_bytes,
        names=tuple(names),
        options=plugin.options(),
    )
    return plugin.build(request)


class Origin:
    """A host's run: a bus, and a forwarder as its worker, whose loop is `pump`."""

    def __init__(
        self,
        folder: Path,
        *,
        shards: int = 1,
        backend: str = "cpp_spmc",
        groups: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.bus = make_bus(["remote", *groups], HOOKS, shards=shards, backend=backend)
        self.producers = [self.bus.producer(shard) for shard in range(shards)]
        document = {
            "schema": "asys.run/1", "run_id": folder.name, "hooks": list(HOOKS), "host_pid": 1,
            "streams": [{"name": name, "module": name, "kind": "activation"} for name in HOOKS],
            "side_streams": [], "step_unit": "batch", "ranks": shards,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(document))
        self.page = StatsPage.create(["remote-0"])
        self.options = ForwarderOptions(**options)
        self._gone_by = float("inf")
        self.incarnation = 0
        self.pushed = 0
        self.start()

    def start(self) -> None:
        self.worker = ForwarderWorker(self.options)
        self.reader: BusSubscription = self.bus.subscribe("remote", f"remote-0.{self.incarnation}")
        known: dict[str, int] = {}
        self.worker.open(
            SinkContext(
                name="remote-0", run_dir=self.folder, run_id=self.folder.name, seed=0,
                slot=self.page.slot("remote-0"), wall_offset_ns=0, incarnation=self.incarnation,
                name_of=self.bus.name_of, decode=lambda packet: packet.raw_tensor(), heartbeat=lambda: None,
                time_left_s=self.time_left_s, names=lambda: interned_names(self.bus, known),
                group="remote", account=self.bus.account, config=CONFIG,
            )
        )  # fmt: skip
        self.incarnation += 1

    def push(self, count: int, nbytes: int = 256, shard: int = 0, hook: int = 0) -> None:
        hook_id = self.bus.intern(HOOKS[hook])
        for _ in range(count):
            body = torch.full((nbytes,), self.pushed & 0xFF, dtype=torch.uint8)
            now = time.monotonic_ns()
            meta = PacketMeta(hook_id, 0, U8, (nbytes,), host_step=self.pushed, timestamp_ns=now)
            assert self.producers[shard].push(meta, body, PATIENCE_S)
            self.pushed += 1

    def push_rows(self, rows: torch.Tensor, step: int, shard: int = 0, hook: int = 0) -> None:
        meta = PacketMeta(
            self.bus.intern(HOOKS[hook]), 0, DTYPE_CODE[rows.dtype], tuple(rows.shape), host_step=step,
            timestamp_ns=time.monotonic_ns(), weights_version=step // 3,
        )  # fmt: skip
        assert self.producers[shard].push(meta, rows, PATIENCE_S)
        self.pushed += 1

    def pump(self) -> None:
        """A turn of the worker's loop."""
        worker = self.worker
        if worker.wants_packets:
            lease = self.reader.pull_batch(worker.max_packets, worker.linger_s, worker.min_packets)
            if len(lease):
                worker.consume(lease)
        worker.idle()

    def pump_until(
        self, check: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not check():
            assert time.monotonic() < deadline, (
                f"not within {timeout_s} s: {what}; {self.counters()}"
            )
            self.pump()

    def counters(self) -> dict[str, int]:
        metrics = self.page.slot("remote-0").metrics()
        return {name: int(m.value) for name, m in metrics.items() if hasattr(m, "add") and m.value}

    def kill(self) -> None:
        """As a SIGKILL: what the forwarder held is gone, the bus gives its claims to the next one."""
        self.worker._connector.close()
        self.reader.close()

    def time_left_s(self) -> float:
        return self._gone_by - time.monotonic()

    def close(self, left_s: float = 60.0) -> None:
        """The run ends; half of the time is for what is still on the bus."""
        self._gone_by = time.monotonic() + left_s
        self.bus.finish()
        while not self.reader.ended and self.time_left_s() > left_s / 2:
            self.pump()
        self.worker.close()
        self.reader.close()

    def release(self) -> None:
        self.bus.close()
        self.page.close()


class Clock:
    """A `LateClock` whose run is a bus in this process."""

    def __init__(self, run_dir: Path, **bus: Any) -> None:
        self.run_dir, self._more = run_dir, bus
        self.bus: BaseDataBus | None = None
        self.should_stop = False
        self.steps_made = 0
        self.page = StatsPage.create(["host"])
        self.began = threading.Event()

    def feed(self, feed: Feed) -> Fed:
        names = [*(one.name for one in feed.streams), *feed.names]
        self.bus = make_bus(["sinks"], names, shards=feed.shards, **self._more)
        self.began.set()
        return Fed(self.bus, self._more.get("capacity_bytes", 16 << 20), 4096)

    def metrics(self) -> Slot:
        return self.page.slot("host")

    def step_to(self, host_step: int) -> None:
        self.steps_made = host_step

    def end(self) -> None:
        pass


class Receiver:
    """A receiver in a thread, and who reads its bus."""

    def __init__(self, folder: Path, *, bus: dict[str, Any] | None = None, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.clock = Clock(folder, **(bus or {}))
        self.host = ReceiverHost(ReceiverOptions(**options), 0)
        assert self.host.build() is None
        assert self.host._router is not None
        self.address = self.host._router.address
        self.result: HostResult | None = None
        self.failure: BaseException | None = None
        self._reader: BusSubscription | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.host.run(self.clock)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - shown by `stop`
            self.failure = error

    def read(self, most: int = 256, timeout_s: float = 0.05) -> list[ActivationPacket]:
        """Packets as a sink sees them, with copies of their payloads."""
        if not self.clock.began.wait(timeout_s):
            return []
        bus = self.clock.bus
        assert bus is not None
        if self._reader is None:
            self._reader = bus.subscribe("sinks", "reader")
        with OriginLease(self._reader.pull_batch(most, timeout_s), bus.intern(ORIGIN)) as lease:
            return [copied(packet) for packet in lease]

    def read_all(self, count: int, timeout_s: float = PATIENCE_S) -> list[ActivationPacket]:
        found: list[ActivationPacket] = []
        deadline = time.monotonic() + timeout_s
        while len(found) < count:
            found += self.read()
            assert time.monotonic() < deadline, f"{len(found)} of {count} packets came"
        return found

    @property
    def account(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "cluster/receiver.json").read_text())
        return document

    def stop(self) -> None:
        self.clock.should_stop = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._reader is not None:
            self._reader.close()
        self.host.close()
        if self.clock.bus is not None:
            self.clock.bus.close()
        self.clock.page.close()
        if self.failure is not None:
            raise self.failure


def copied(packet: ActivationPacket) -> ActivationPacket:
    import dataclasses

    return dataclasses.replace(packet, payload=memoryview(bytes(packet.payload)))
