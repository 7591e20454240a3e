"""Batches for other trainers, from the archive and live from the bus."""

import runpy
import threading
from pathlib import Path

import pytest
import torch

from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.packet import DTYPE_CODE, PacketMeta
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.saelens_provider import LiveRows, RowsEndedError, data_provider

OFFLINE = Path(__file__).parent.parent / "offline" / "conftest.py"
HOOK = "policy.mlp"


@pytest.fixture
def archive(tmp_path):
    return ArchiveView(runpy.run_path(str(OFFLINE))["write_run"](tmp_path / "run", rows=5000))


def as_set(batches):
    return {tuple(row) for batch in batches for row in batch.tolist()}


def test_the_rows_of_an_archive_come_once_an_epoch_each_time_in_another_order(archive):
    rows = archive.torch(HOOK, batch_rows=128, shuffle_window=1024, drop_last=True)
    provider = data_provider(rows, epochs=2)
    epochs = [[next(provider) for _ in range(5000 // 128)] for _ in range(2)]
    for batches in epochs:
        assert {(tuple(batch.shape), batch.dtype) for batch in batches} == {
            ((128, 12), torch.float32)
        }
        assert len(as_set(batches)) == len(batches) * 128
    assert not torch.equal(epochs[0][0], epochs[1][0])
    with pytest.raises(RowsEndedError, match=r"after 78 batches \(9984 rows\).*raise `epochs`"):
        next(provider)


def test_without_epochs_it_never_ends_but_over_no_row_at_all(archive):
    rows = archive.torch(HOOK, batch_rows=512, shuffle_window=1024, drop_last=True)
    endless = data_provider(rows, epochs=None)
    assert [len(next(endless)) for _ in range(40)] == [512] * 40
    none = archive.torch(HOOK, batch_rows=6000, drop_last=True)
    with pytest.raises(RowsEndedError, match="after 0 batches"):
        next(data_provider(none, epochs=None))


@pytest.fixture
def bus():
    config = BusConfig(backend="mp_queue", capacity_packets=256, capacity_mib=4)
    with create_data_bus(config, [GroupSpec("trainer")], names=("a", "b")) as made:
        yield made


def push(bus, producer, value, hook="a", rows=16):
    tensor = torch.full((rows, 4), float(value))
    meta = PacketMeta(bus.intern(hook), 0, DTYPE_CODE[torch.float32], tuple(tensor.shape))
    return producer.push(meta, tensor, 60.0)


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
    reader.join(60)
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
