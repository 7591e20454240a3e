"""The commit thread: it waits so that the host does not have to."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from asys_bench.capture.gpu.outcome import DeviceDrop
from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig, DeviceConfig
from asys_bench.contracts.bus import GroupSpec

from .rig import CPU, Rig, bytes_of, meta_builder
from .simulated_device import SimulatedDevice


def test_packets_arrive_in_order_while_a_device_thread_works_at_its_own_pace():
    rig = Rig(threaded=True, options=DeviceConfig(max_in_flight=64))
    rig.device.automatic = False
    stop = threading.Event()

    def work():
        while not stop.is_set():
            for stream in list(rig.device.streams.values()):
                rig.device.step(stream)
            time.sleep(0)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(200):
            while rig.streamer.submit(
                torch.full((8,), float(number)), rig.identity, meta_builder(number), key="a"
            ):
                time.sleep(0.0005)
        assert rig.streamer.drain(timeout_s=60) == 0
    finally:
        stop.set()
        worker.join()
    assert rig.numbers == list(range(200))
    assert rig.payloads() == [bytes_of(torch.full((8,), float(n))) for n in range(200)]
    assert rig.device.violations == []
    host = threading.get_ident()
    assert rig.waits()
    assert all(thread != host for _, _, thread in rig.waits()), "the host's thread never waits"
    assert rig.streamer.close() == 0


def test_when_pinning_fails_one_line_says_why_and_the_commit_thread_does_the_copies(caplog):
    rig = Rig(device=SimulatedDevice(refuses_to_pin="CUDA_ERROR_OUT_OF_MEMORY (2)"), threaded=True)
    (record,) = caplog.records
    text = record.getMessage()
    assert "CUDA_ERROR_OUT_OF_MEMORY" in text
    assert "GB/s" in text
    assert "ulimit -l" in text
    assert not rig.streamer.pinned
    rig.submit(torch.arange(5.0))
    assert rig.streamer.drain(timeout_s=60) == 0
    assert rig.payloads() == [bytes_of(torch.arange(5.0))]
    side = {
        thread for what, name, thread in rig.device.calls if (what, name) == ("run", "side cpu")
    }
    assert side
    assert threading.get_ident() not in side, "such a copy makes its caller wait"
    rig.streamer.close()


def test_on_full_block_waits_for_room_and_uses_its_timeout_on_the_bus():
    rig = Rig(threaded=True, options=DeviceConfig(max_in_flight=1))
    held, release = threading.Event(), threading.Event()

    def slow():
        held.set()
        release.wait(60)

    rig.producer.before_push = slow
    rig.submit(torch.ones(2), timeout_s=5.0)
    assert held.wait(60)
    assert rig.submit(torch.ones(2)) is DeviceDrop.IN_FLIGHT_FULL
    threading.Timer(0.05, release.set).start()
    assert rig.submit(torch.ones(2), timeout_s=60.0) is None
    assert rig.streamer.drain(60) == 0
    assert rig.numbers == [0, 2]
    assert rig.producer.timeouts == [5.0, 60.0]
    rig.streamer.close()


def test_a_submit_that_waits_for_room_gives_up_at_its_timeout():
    rig = Rig(threaded=True, options=DeviceConfig(max_in_flight=1))
    rig.device.automatic = False
    rig.submit(torch.ones(2))
    assert rig.submit(torch.ones(2), timeout_s=0.02) is DeviceDrop.IN_FLIGHT_FULL
    rig.device.finish()
    assert rig.streamer.drain(60) == 0
    rig.streamer.close()


def test_a_packet_that_is_being_pushed_while_the_path_closes_counts_as_committed():
    rig = Rig(threaded=True)
    held, release = threading.Event(), threading.Event()

    def slow():
        held.set()
        release.wait(60)

    rig.producer.before_push = slow
    rig.submit(torch.ones(2))
    rig.submit(torch.ones(2))
    assert held.wait(60)
    assert rig.streamer.close(timeout_s=0.05) == 1
    release.set()
    assert rig.streamer.drain(60) == 0
    account = rig.streamer.account()
    assert (account.committed, account.dropped, account.imbalance) == (1, {DeviceDrop.CLOSED: 1}, 0)
    assert rig.numbers == [0]


def test_a_device_that_breaks_under_the_commit_thread_is_reported_once(caplog):
    rig = Rig(threaded=True)
    rig.device.automatic = False
    rig.submit(torch.ones(2))
    rig.device.break_down(RuntimeError("CUDA error: unspecified launch failure"))
    assert rig.streamer.drain(60) == 0
    assert rig.submit(torch.ones(2)) is DeviceDrop.DEVICE_FAILED
    rig.streamer.close()  # the thread has said so once it has ended
    assert len(caplog.records) == 1
    assert "unspecified launch failure" in caplog.text


@pytest.mark.parametrize("backend", ["cpp_spmc", "numba_ring", "mp_queue"])
def test_payloads_cross_a_real_bus(backend):
    device = SimulatedDevice()
    bus = create_data_bus(BusConfig(backend=backend), [GroupSpec("g")])
    rig = Rig()  # for its preprocessor
    streamer = DeviceStreamer(
        device, bus.producer(0), threading.Lock(), DeviceConfig(), devices=(CPU,)
    )
    sent = [torch.randn(3, number + 1).t() for number in range(20)]
    for number, tensor in enumerate(sent):
        assert streamer.submit(tensor, rig.identity, meta_builder(number), key="a") is None
    assert streamer.close(timeout_s=60) == 0
    bus.finish()
    received = []
    while len(received) < 20:
        with bus.pull_batch("g", 64, timeout_s=60.0) as lease:
            assert len(lease), "packets are missing"
            received += [(packet.host_step, packet.raw_tensor().clone()) for packet in lease]
    bus.close()
    rig.streamer.close()
    assert [number for number, _ in received] == list(range(20))
    assert all(torch.equal(a, b) for (_, a), b in zip(received, sent, strict=True))
