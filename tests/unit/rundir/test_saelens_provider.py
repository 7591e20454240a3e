"""Batches for other trainers, from the archive and live from the bus."""

import runpy
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.packet import DTYPE_CODE, PacketMeta
from asys_bench.offline import archive_packets
from asys_bench.rundir.saelens_provider import ArchiveRows, LiveRows, RowsEndedError, data_provider
from asys_bench.sinks.archive import open_archive

OFFLINE = Path(__file__).parent.parent / "offline" / "conftest.py"
HOOK = "policy.mlp"


@pytest.fixture
def archive(tmp_path):
    return open_archive(runpy.run_path(str(OFFLINE))["write_run"](tmp_path / "run", rows=5000))


def as_set(batches):
    return {tuple(row) for batch in batches for row in batch.tolist()}


def test_an_epoch_serves_every_row_once_in_random_order(archive):
    dataset = ArchiveRows(archive, HOOK, 128, epochs=1, buffer_rows=1024)
    batches = list(dataset)
    assert {tuple(batch.shape) for batch in batches} == {(128, 12)}
    assert len(batches) == 5000 // 128
    in_order = torch.cat([packet.rows_ND for packet in archive_packets(archive, HOOK)])
    assert as_set(batches) <= as_set([in_order])
    assert len(as_set(batches)) == len(batches) * 128
    first = as_set(batches[:4])
    assert not first <= as_set([in_order[: 4 * 128]])
    again = list(dataset)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_held_out_packets_stay_out(archive):
    kept = as_set(ArchiveRows(archive, HOOK, 1, epochs=1, held_out_fraction=0.5))
    everything = as_set(ArchiveRows(archive, HOOK, 1, epochs=1))
    assert 0.3 < len(kept) / len(everything) < 0.7


def test_without_epochs_it_never_ends_and_with_them_the_end_is_explained(archive):
    endless = data_provider(ArchiveRows(archive, HOOK, 512, buffer_rows=1024))
    assert [len(next(endless)) for _ in range(40)] == [512] * 40
    short = data_provider(ArchiveRows(archive, HOOK, 2000, epochs=1))
    assert len(next(short)) == len(next(short)) == 2000
    with pytest.raises(RowsEndedError, match=r"after 2 batches \(4000 rows\).*raise `epochs`"):
        next(short)


def test_a_data_loader_takes_it_as_it_is(archive):
    loader = DataLoader(ArchiveRows(archive, HOOK, 100, epochs=1), batch_size=None)
    assert sum(len(batch) for batch in loader) == 5000


def test_wrong_requests_are_refused_at_once(archive):
    with pytest.raises(KeyError, match="no hook 'x'"):
        ArchiveRows(archive, "x", 10)
    with pytest.raises(ValueError, match="batch_rows 0"):
        next(iter(ArchiveRows(archive, HOOK, 0)))


@pytest.fixture
def bus():
    config = BusConfig(backend="mp_queue", capacity_packets=256, capacity_mib=4)
    with create_data_bus(config, [GroupSpec("trainer")], names=("a", "b")) as made:
        yield made


def push(bus, producer, value, hook="a", rows=16):
    tensor = torch.full((rows, 4), float(value))
    meta = PacketMeta(bus.intern(hook), 0, DTYPE_CODE[torch.float32], tuple(tensor.shape))
    return producer.push(meta, tensor, 2.0)


def test_live_rows_are_those_of_the_hook_until_the_run_ends(bus):
    producer = bus.producer(0)
    rows = iter(LiveRows(bus, "a", 32, buffer_rows=1024))
    served = []
    reader = threading.Thread(target=lambda: served.extend(rows))
    reader.start()
    while not any(group.group == "saelens" for group in bus.account().groups):
        threading.Event().wait(0.01)
    for value in range(40):
        assert push(bus, producer, value)
        assert push(bus, producer, -1, hook="b")
        with bus.pull_batch("trainer", 64, 0.0) as lease:
            del lease
    bus.finish()
    with bus.pull_batch("trainer", 256, 0.2) as lease:
        del lease
    reader.join(20)
    assert not reader.is_alive()
    values = torch.cat(served)[:, 0]
    assert len(values) % 32 == 0
    assert len(values) == 40 * 16
    assert values.min() >= 0


def test_silence_is_reported_with_what_to_look_at(bus):
    rows = data_provider(LiveRows(bus, "a", 32, patience_s=0.2))
    with pytest.raises(RowsEndedError, match=r"no row of 'a' came in 0\.2 s; is it hooked"):
        next(rows)


def test_closing_the_provider_leaves_the_bus(bus):
    producer = bus.producer(0)
    provider = data_provider(LiveRows(bus, "a", 16, buffer_rows=16, group="extra"))
    pusher = threading.Timer(0.3, lambda: [push(bus, producer, 1) for _ in range(4)])
    pusher.start()
    assert len(next(provider)) == 16
    pusher.join()
    provider.close()
    for value in range(300):
        push(bus, producer, value)
        with bus.pull_batch("trainer", 256, 0.0) as lease:
            del lease
    account = bus.account()
    assert account.dropped_total == 0
