"""A rig that feeds an archiver by hand: packets in a fake lease that notices views left alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from asys_bench.contracts.bus import Lease
from asys_bench.contracts.packet import ActivationPacket, Kind, tensor_bytes
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.sinks.archiver import ArchiverOptions, ArchiverWorker

NAMES = ("identity", "policy.mlp", "value/net:0", "encoder")


class FakeLease(Lease):
    """Packets in bytearrays: resizing one raises BufferError while any view of it lives."""

    def __init__(self, packets: Sequence[ActivationPacket]) -> None:
        self._memory: list[bytearray] = []
        self._packets: list[ActivationPacket] = []
        for packet in packets:
            memory = bytearray(packet.payload)
            self._memory.append(memory)
            self._packets.append(replace(packet, payload=memoryview(memory)))

    @property
    def packets(self) -> Sequence[ActivationPacket]:
        return self._packets

    def release(self) -> int:
        count = len(self._packets)
        for packet in self._packets:
            packet.payload.release()
        for memory in self._memory:
            memory.append(0)
        self._packets = []
        return count

    def give_back(self) -> None:
        self._packets = []


def packet(
    tensor: torch.Tensor, seq: int, hook: int = 1, *, shard: int = 0, **fields: Any
) -> ActivationPacket:
    """A packet as a bus would deliver it."""
    base = ActivationPacket(
        seq=seq, source=7, shard=shard, hook_id=hook, kind=Kind.ACTIVATION, dtype=tensor.dtype,
        shape=tuple(tensor.shape), host_step=seq * 10, timestamp_ns=1000 + seq, weights_version=3,
        encoding_id=0, params=bytes(16), sampling_rate=0.5, call_index=seq, microbatch=2,
        token_position=-1, crc=None,
        payload=memoryview(bytes(tensor_bytes(tensor.contiguous()))),
    )  # fmt: skip
    return replace(base, **fields)


class Rig:
    """A run directory and archivers that write in it."""

    packet = staticmethod(packet)
    lease = FakeLease

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.page = StatsPage.create(["archiver-0", "archiver-1"])
        self.names: tuple[str, ...] = NAMES
        self.beats = 0
        self.time_left_s: Callable[[], float] = lambda: float("inf")
        self.on_beat: Callable[[], None] = lambda: None

    def _beat(self) -> None:
        self.beats += 1
        self.on_beat()

    def start(
        self, incarnation: int = 0, name: str = "archiver-0", members: int = 1, *, attempt: int = 0,
        **options: Any,
    ) -> ArchiverWorker:  # fmt: skip
        worker = ArchiverWorker(ArchiverOptions(**options))
        worker.open(
            SinkContext(
                name=name,
                run_dir=self.run_dir,
                run_id="run-1",
                seed=0,
                slot=self.page.slot(name),
                wall_offset_ns=1_000_000,
                incarnation=incarnation,
                name_of=lambda name_id: self.names[name_id],
                decode=ActivationPacket.raw_tensor,
                heartbeat=self._beat,
                time_left_s=lambda: self.time_left_s(),
                members=members,
                attempt=attempt,
            )
        )
        return worker

    def feed(self, worker: ArchiverWorker, *packets: ActivationPacket) -> None:
        """Consume one lease; raises BufferError if the worker kept a view."""
        with FakeLease(packets) as lease:
            worker.consume(lease)

    def count(self, metric: str, name: str = "archiver-0") -> int:
        """The counter's value, summed over its labels."""
        metrics = self.page.slot(name).metrics()
        return sum(m.value for full, m in metrics.items() if full.partition("{")[0] == metric)

    def shards(self) -> list[Path]:
        return sorted((self.run_dir / "archive").glob("*/*.arrows"))

    @staticmethod
    def table(path: Path) -> pa.Table:
        """What plain pyarrow sees, without any code of ours."""
        with path.open("rb") as file:
            return pa.ipc.open_stream(file).read_all()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.page.close()
