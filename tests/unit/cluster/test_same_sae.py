"""An SAE that is trained behind the network is that of the host's own worker, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asys_bench.contracts.bus import BusClient, BusSubscription, Lease
from asys_bench.contracts.origin import ORIGIN, OriginLease
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.sinks.decoding import Decoder
from asys_bench.sinks.sae_trainer import SAETrainerOptions, SAETrainerWorker
from asys_bench.workers.shard_bus import interned_names
from tests.unit.cluster.loopback import Origin, Receiver

PACKETS = 120
SAE = {
    "d_sae": 48, "k": 4, "passes": 0.5, "batch_rows": 32, "buffer_rows": 512, "min_buffer_fill_ratio": 0.1,
    "checkpoint_interval_s": 1000, "threads": 1,
}  # fmt: skip


class Trainer:
    """A trainer worker on a bus, one packet a lease: leases of other sizes are other batches in time."""

    def __init__(self, run_dir: Path, bus: BusClient) -> None:
        self.page = StatsPage.create(["trainer-0"])
        self.worker = SAETrainerWorker(
            SAETrainerOptions.model_validate({"max_lag_s": 1000, "sae": SAE})
        )
        self.left_s = float("inf")
        self.bus, self.run_dir = bus, run_dir
        decoder, known = Decoder(bus.name_of), dict[str, int]()
        run_dir.mkdir(exist_ok=True)
        self.worker.open(
            SinkContext(
                name="trainer-0", run_dir=run_dir, run_id="run", seed=5, slot=self.page.slot("trainer-0"),
                wall_offset_ns=0, incarnation=0, name_of=bus.name_of, decode=decoder, rows=decoder.rows,
                grid=decoder.grid, heartbeat=lambda: None, time_left_s=lambda: self.left_s,
                names=lambda: interned_names(bus, known),
            )
        )  # fmt: skip

    def train(self, subscription: BusSubscription, origin_id: int | None) -> None:
        done = 0
        while done < PACKETS:
            lease: Lease = subscription.pull_batch(1, 0.05)
            if origin_id is not None:
                lease = OriginLease(lease, origin_id)
            with lease:
                if len(lease):
                    self.worker.consume(lease)
                    done += len(lease)
            self.worker.idle()
        self.left_s = 60.0
        self.worker.close()

    def weights(self) -> dict[str, torch.Tensor]:
        found = {}
        for path in sorted(self.run_dir.glob("sae/*/latest/*.safetensors")):
            for name, tensor in load_file(path).items():
                found[f"{path.parts[-3]}/{path.name}/{name}"] = tensor
        return found


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.rest
def test_the_same_packets_in_the_same_order_make_the_same_sae_behind_the_network(
    tmp_path: Path,
) -> None:
    there = Receiver(tmp_path / "recv")
    here = Origin(tmp_path / "run", shards=2, groups=["local"], to=there.address, wait_s=60)
    local = Trainer(tmp_path / "local", here.bus)
    here_reader = here.bus.subscribe("local", "local")
    generator = torch.Generator().manual_seed(3)
    basis = torch.randn(48, 24, generator=generator)
    for step in range(PACKETS):
        codes = torch.relu(torch.randn(40, 48, generator=generator) - 1.5)
        here.push_rows(codes @ basis, step, shard=0 if step < PACKETS // 2 else 1, hook=0)
    here.pump_until(lambda: here.counters().get("remote_acked") == PACKETS, "answers")
    local.train(here_reader, None)
    bus = there.clock.bus
    assert bus is not None
    remote = Trainer(tmp_path / "remote", bus)
    there_reader = bus.subscribe("sinks", "trainer")
    remote.train(there_reader, bus.intern(ORIGIN))
    mine, theirs = local.weights(), remote.weights()
    assert mine.keys() == theirs.keys()
    assert len(mine) > 4
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    here_reader.close()
    there_reader.close()
    here.close()
    here.release()
    there.stop()
    local.page.close()
    remote.page.close()
