"""A rig that feeds a trainer worker by hand: packets in a fake lease that notices views left alive."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asys_bench.contracts.bus import Lease
from asys_bench.contracts.packet import ActivationPacket, Kind, tensor_bytes
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.sinks.sae_trainer import SAETrainerOptions, SAETrainerWorker

NAMES = ("identity", "layer.0", "layer.1")


class FakeLease(Lease):
    """Packets in bytearrays: resizing one raises BufferError while any view of it lives."""

    def __init__(self, packets: Sequence[ActivationPacket]) -> None:
        self._memory = [bytearray(packet.payload) for packet in packets]
        self._packets = [
            replace(packet, payload=memoryview(memory))
            for packet, memory in zip(packets, self._memory, strict=True)
        ]

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


def packet(rows: torch.Tensor, seq: int, hook: int = 1, **fields: Any) -> ActivationPacket:
    """A packet as a bus would deliver it, captured now."""
    base = ActivationPacket(
        seq=seq, source=0, shard=0, hook_id=hook, kind=Kind.ACTIVATION, dtype=rows.dtype,
        shape=tuple(rows.shape), host_step=seq, timestamp_ns=time.monotonic_ns(),
        weights_version=seq // 4, encoding_id=0, params=bytes(16), sampling_rate=1.0, call_index=0,
        microbatch=0, token_position=-1, crc=None,
        payload=memoryview(bytes(tensor_bytes(rows.contiguous()))),
    )  # fmt: skip
    return replace(base, **fields)


def rows(seed: int, width: int = 8, count: int = 64) -> torch.Tensor:
    """Rows that an SAE has something to learn from."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class Rig:
    """A run directory and trainer workers that write in it."""

    packet = staticmethod(packet)
    rows = staticmethod(rows)

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.page = StatsPage.create(["trainer-0"])
        self.left_s = float("inf")
        self.names: tuple[str, ...] = NAMES

    def start(self, incarnation: int = 0, **options: Any) -> SAETrainerWorker:
        small = {
            "d_sae": 32,
            "k": 2,
            "batch_rows": 64,
            "buffer_rows": 512,
            "held_out_fraction": 0.1,
        }
        options["sae"] = small | options.get("sae", {})
        worker = SAETrainerWorker(SAETrainerOptions.model_validate(options))
        worker.open(
            SinkContext(
                name="trainer-0",
                run_dir=self.run_dir,
                run_id="run-1",
                seed=0,
                slot=self.page.slot("trainer-0"),
                wall_offset_ns=0,
                incarnation=incarnation,
                name_of=NAMES.__getitem__,
                names=lambda: self.names,
                decode=ActivationPacket.raw_tensor,
                heartbeat=lambda: None,
                time_left_s=lambda: self.left_s,
            )
        )
        return worker

    def feed(self, worker: SAETrainerWorker, *packets: ActivationPacket) -> None:
        """Consume one lease; raises BufferError if the worker kept a view."""
        with FakeLease(packets) as lease:
            worker.consume(lease)

    def figure(self, name: str, hook: str) -> float:
        """A counter or gauge of one SAE."""
        return self.page.slot("trainer-0").metrics()[f"{name}{{hook={hook}}}"].value

    def labels(self, name: str) -> set[str]:
        """The SAEs that report a metric."""
        metrics = self.page.slot("trainer-0").metrics()
        return {full.partition("=")[2][:-1] for full in metrics if full.startswith(name + "{")}


@contextmanager
def rig_in(folder: Path) -> Iterator[Rig]:
    made = Rig(folder)
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    made.page.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rig_in(tmp_path) as made:
        yield made
