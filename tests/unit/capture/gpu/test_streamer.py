"""The streamer: what is admitted, what is dropped and why, and how it ends."""

from __future__ import annotations

import threading

import pytest
import torch

from asys_bench.capture.gpu.outcome import DeviceDrop, Settled
from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.packet import PacketError
from asys_bench.contracts.stats import StatsPage

from .rig import CPU, MemoryProducer, Rig, bytes_of, meta_builder
from .simulated_device import DeviceError, SimulatedDevice


def test_submit_issues_work_and_returns_before_any_of_it_ran():
    rig = Rig()
    assert rig.submit(torch.ones(4)) is None
    assert rig.numbers == []
    assert [call[:2] for call in rig.device.calls] == [
        ("run", "host cpu"),
        ("record", "host cpu"),
        ("wait", "side cpu"),
        ("run", "side cpu"),
        ("record", "side cpu"),
    ]
    assert not rig.streamer.settle(), "nothing has arrived"
    rig.settle_all()
    assert rig.payloads() == [bytes_of(torch.ones(4))]
    rig.streamer.close()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.zeros(0, 5),
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        torch.randn(5, 3).to(torch.bfloat16)[:, ::2],
        torch.tensor([1 + 2j, 3 - 1j]).conj(),
        torch.tensor([True, False]),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.ones(1, 4).expand(3, 4),
    ],
    ids=["scalar", "empty", "permuted", "strided-bf16", "conjugate", "bool", "fp8", "expanded"],
)
@pytest.mark.parametrize("pins", [True, False])
def test_any_layout_and_dtype_arrives_as_it_was(tensor, pins):
    device = SimulatedDevice(refuses_to_pin=None if pins else "no")
    rig = Rig(device=device, options=DeviceConfig(staging_mib=1, buffer_mib=1))
    with torch.inference_mode():
        rig.submit(tensor)
    rig.submit(tensor)
    rig.settle_all()
    assert rig.payloads() == [bytes_of(tensor.resolve_conj())] * 2
    assert device.violations == []
    rig.streamer.close()


def test_a_full_path_drops_with_a_reason_and_never_waits():
    rig = Rig(options=DeviceConfig(staging_mib=1, buffer_mib=1, max_in_flight=2))
    assert [rig.submit(torch.ones(2)) for _ in range(3)] == [None, None, DeviceDrop.IN_FLIGHT_FULL]
    assert rig.streamer.fill_ratio == 1.0
    rig.settle_all()
    assert rig.submit(torch.ones(2)) is None
    rig.settle_all()
    assert rig.numbers == [0, 1, 3]
    assert rig.streamer.account().dropped == {DeviceDrop.IN_FLIGHT_FULL: 1}
    rig.streamer.close()


def test_memory_bounds_what_is_in_flight_and_too_large_is_its_own_reason():
    rig = Rig(options=DeviceConfig(staging_mib=1, buffer_mib=1))
    half = torch.zeros(400 * 1024, dtype=torch.uint8)
    assert [rig.submit(half) for _ in range(3)] == [None, None, DeviceDrop.IN_FLIGHT_FULL]
    assert rig.submit(torch.zeros(2 << 20, dtype=torch.uint8)) is DeviceDrop.TOO_LARGE
    rig.settle_all()
    assert rig.streamer.account().committed == 2
    rig.streamer.close()


def test_nothing_joins_a_graph_that_the_host_captures():
    rig = Rig()
    rig.device.is_capturing = True
    assert rig.submit(torch.ones(2)) is DeviceDrop.GRAPH_CAPTURE
    assert rig.device.calls == []
    rig.device.is_capturing = False
    assert rig.submit(torch.ones(2)) is None
    rig.streamer.close()


def test_what_the_bus_refuses_is_counted_and_does_not_stop_the_path():
    rig = Rig()
    rig.producer.refuses = True
    rig.submit(torch.ones(2), key="a")
    rig.settle_all()
    rig.producer.refuses = False
    rig.submit(torch.ones(2), key="a")
    rig.settle_all()
    assert rig.streamer.collect() == [
        Settled("a", DeviceDrop.BUS_REFUSED, 1, 0),
        Settled("a", None, 1, 8),
    ]
    assert rig.streamer.collect() == []
    rig.streamer.close()


def test_an_error_on_the_way_to_the_bus_reaches_the_hook_by_collect_only():
    rig = Rig()
    rig.producer.raises = ValueError("broken bus")
    rig.submit(torch.ones(2), key="a")
    rig.submit(torch.ones(2), key="a")
    rig.settle_all()
    rig.producer.raises = None
    rig.submit(torch.ones(2), key="b")
    rig.settle_all()
    assert rig.streamer.collect() == [
        Settled("a", DeviceDrop.DELIVERY_FAILED, 2, 0, "ValueError: broken bus"),
        Settled("b", None, 1, 8),
    ]
    rig.streamer.close()


def test_a_broken_device_switches_the_path_off_with_one_line(caplog):
    rig = Rig()
    for _ in range(3):
        rig.submit(torch.ones(2))
    rig.device.break_down(DeviceError("an illegal memory access was encountered"))
    assert not rig.streamer.settle()
    assert not rig.streamer.settle()
    assert rig.submit(torch.ones(2)) is DeviceDrop.DEVICE_FAILED
    account = rig.streamer.account()
    assert account.dropped == {DeviceDrop.DEVICE_FAILED: 4}
    assert account.imbalance == 0
    assert len(caplog.records) == 1
    assert "illegal memory access" in caplog.text
    assert rig.streamer.close() == 0
    assert rig.device.registered, "the device may still write there: it stays registered and mapped"


def test_a_launch_that_raises_reaches_the_hook_and_costs_one_packet():
    rig = Rig()
    rig.submit(torch.ones(2))
    run = rig.device.run

    def failing(stream, work, *operands):
        raise DeviceError("no kernel image is available")

    rig.device.run = failing
    with pytest.raises(DeviceError, match="kernel image"):
        rig.submit(torch.ones(2))
    rig.device.run = run
    rig.submit(torch.ones(2))
    rig.settle_all()
    assert rig.numbers == [0, 2]
    account = rig.streamer.account()
    assert account.dropped == {DeviceDrop.LAUNCH_FAILED: 1}
    assert (account.imbalance, account.in_flight) == (0, 0)
    rig.streamer.close()


def test_a_tensor_that_the_encoding_cannot_carry_is_an_error_before_anything_is_counted():
    rig = Rig()
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(PacketError, match="strided"):
        rig.submit(sparse)
    assert rig.streamer.account().submitted == 0
    rig.streamer.close()


def test_closing_with_a_device_that_hangs_counts_what_is_lost_and_keeps_its_memory():
    rig = Rig(threaded=True)
    rig.device.automatic = False
    rig.submit(torch.ones(2), key="a")
    rig.submit(torch.ones(2), key="a")
    assert rig.streamer.close(timeout_s=0.05) == 2
    assert rig.streamer.close() == 0, "a second close does nothing"
    account = rig.streamer.account()
    assert (account.in_flight, account.imbalance) == (0, 0)
    assert account.dropped == {DeviceDrop.CLOSED: 2}
    assert rig.submit(torch.ones(2)) is DeviceDrop.CLOSED
    assert rig.device.registered
    rig.device.finish()  # the device was only slow: what arrives now must not reach the bus
    thread = next((t for t in threading.enumerate() if t.name == "asys-device-commit"), None)
    if thread is not None:
        thread.join(60)
    assert rig.numbers == []


def test_a_streamer_serves_devices_or_is_refused():
    producer = MemoryProducer()
    with pytest.raises(ValueError, match="devices"):
        DeviceStreamer(SimulatedDevice(), producer, producer.lock, devices=())


def test_metrics_reach_the_stats_page():
    page = StatsPage.create(["host"])
    rig = Rig(slot=page.slot("host"), options=DeviceConfig(max_in_flight=1))
    rig.submit(torch.ones(2))
    rig.submit(torch.ones(2))
    values = page.slot("host").metrics()
    assert values["device_in_flight"].value == 1
    rig.settle_all()
    assert values["device_committed"].value == 1
    assert values["device_committed_bytes"].value == 8
    assert values["device_dropped{reason=in_flight_full}"].value == 1
    assert values["device_in_flight"].value == 0
    assert values["device_pin_failed"].value == 0
    assert values["device_latency_ns"].snapshot().count == 1
    assert values["device_copy_gbps{device=cpu,memory=pinned}"].value > 0
    assert values["device_copy_gbps{device=cpu,memory=pageable}"].value > 0
    rig.streamer.close()
    del values
    page.close()


def test_a_second_device_that_appears_later_gets_its_own_stream():
    from .rig import OnSecondDevice

    rig = Rig(devices=(CPU,))
    rig.submit(torch.ones(2))
    rig.submit(torch.ones(3).as_subclass(OnSecondDevice))
    rig.settle_all()
    assert rig.numbers == [0, 1]
    assert {"side cpu", "side cuda:1"} <= set(rig.device.streams)
    rig.streamer.close()


def test_the_meta_is_built_at_the_hook_and_not_when_the_packet_arrives():
    rig = Rig()
    built = []

    def build(encoded):
        built.append(len(rig.numbers))
        return meta_builder(7)(encoded)

    rig.streamer.submit(torch.ones(2), rig.identity, build, key="a")
    assert built == [0]
    rig.settle_all()
    assert (built, rig.numbers) == ([0], [7])
    rig.streamer.close()
