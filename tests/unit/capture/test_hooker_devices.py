"""Tensors of other devices: who takes them, and that every one is counted once it is settled."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
import torch

from asys_bench.capture import capture, offload
from asys_bench.capture.offload import Offload
from asys_bench.capture.points import rows
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.preprocessor import Encoded


@dataclass
class Settled:
    key: str
    drop: str | None
    packets: int
    nbytes: int
    error: str | None = None


class FakeStreamer:
    """A device path whose packets arrive when the test says so."""

    def __init__(self):
        self.prepared, self.waiting, self.settled = [], [], []
        self.full = False
        self.fill_ratio = 0.0
        self.closed = False

    def prepare(self, preprocessor):
        self.prepared.append(preprocessor)

    def submit(self, tensor, preprocessor, make_meta, *, key, timeout_s, real=None):
        plan = Encoded(tensor.numel() * tensor.element_size(), tensor.dtype, tuple(tensor.shape))
        meta = make_meta(plan)
        if self.full:
            self.settled.append(Settled(key, "in_flight_full", 1, 0))
            return "in_flight_full"
        self.waiting.append((key, meta, plan.nbytes))
        return None

    def arrive(self, drop=None, error=None):
        for key, _, nbytes in self.waiting:
            self.settled.append(Settled(key, drop, 1, 0 if drop else nbytes, error))
        self.waiting.clear()

    def collect(self):
        settled, self.settled = self.settled, []
        return settled

    def close(self, timeout_s):
        self.arrive()
        self.closed = True
        return 0


@pytest.fixture
def elsewhere(rig, monkeypatch):
    """A rig whose model returns tensors of a device that the fake streamer serves."""
    monkeypatch.setattr(capture, "unreadable", lambda tensor: None)  # meta stands in for cuda
    made = []

    def make(served=("meta",), kinds=("activation",), rule=None, **bus):
        class OnDevice(torch.nn.Module):
            def forward(self, x):
                return x.to("meta") * 1

        model = torch.nn.Sequential(OnDevice())
        observed = rig(
            model, {"match": "0", "capture": list(kinds), **(rule or {})}, attach=False, **bus
        )
        streamer = FakeStreamer()

        def start(writer, slot, devices, config):
            made.append(devices)
            return streamer

        hooker = observed.hooker
        hooker._offload = Offload(
            hooker._writer,
            observed.slot,
            DeviceConfig(),
            make_streamer=start,
            served=frozenset(served),
        )
        hooker.attach()
        return observed, model, streamer

    make.started = made
    return make


def test_a_packet_counts_when_it_has_arrived(elsewhere):
    observed, model, streamer = elsewhere()
    observed.clock.step(3)
    for _ in range(5):
        model(torch.randn(2, 4))
    assert len(elsewhere.started) == 1
    key, meta, _ = streamer.waiting[-1]
    assert (key, meta.shape, meta.host_step, meta.microbatch) == ("0", (2, 4), 3, 4)
    assert observed.value("calls", "0") == 5
    streamer.arrive()
    observed.hooker._offload.settle()
    assert observed.value("captured", "0") == 5
    assert observed.value("bytes", "0") == 5 * 2 * 4 * 4
    assert observed.is_accounted_for("0")


def test_an_image_on_a_device_is_sent_as_rows_of_channels(elsewhere, monkeypatch):
    monkeypatch.setattr(rows, "unreadable", lambda tensor: None)
    _, model, streamer = elsewhere(rule={"rows": "channels"})
    model(torch.randn(2, 5, 3, 4))
    (key, meta, nbytes) = streamer.waiting[-1]
    assert (key, meta.shape, nbytes) == ("0", (2, 3, 4, 5), 4 * 120)


def test_a_full_device_path_drops_counts_and_lowers_the_rate(elsewhere):
    observed, model, streamer = elsewhere(on_full="sample")
    streamer.full = True
    streamer.fill_ratio = 1.0
    for _ in range(100):
        model(torch.randn(2, 4))
    assert observed.value("dropped", "0") > 0
    assert observed.value("sampling_rate", "0") <= 0.5
    assert observed.is_accounted_for("0")


def test_detach_waits_for_what_is_under_way_and_stops_the_path(elsewhere):
    observed, model, streamer = elsewhere()
    model(torch.randn(2, 4))
    observed.hooker.detach()
    assert streamer.closed
    assert observed.value("captured", "0") == 1


def test_an_encoder_that_fails_on_the_way_switches_its_hook_off(elsewhere, caplog):
    observed, model, streamer = elsewhere()
    model(torch.randn(2, 4))
    streamer.arrive(drop="delivery_failed", error="PacketError: no")
    observed.hooker._offload.settle()
    model(torch.randn(2, 4))
    assert observed.value("failed", "0") == 1
    assert observed.value("calls", "0") == 1
    assert any("PacketError: no" in record.message for record in caplog.records)


def test_a_path_that_cannot_start_is_tried_once_and_the_host_goes_on(rig, elsewhere):
    observed, model, _ = elsewhere()
    tries = []

    def broken(writer, slot, devices, config):
        tries.append(devices)
        raise RuntimeError("out of memory")

    observed.hooker.detach()
    observed.hooker._offload = Offload(
        observed.hooker._writer,
        observed.slot,
        DeviceConfig(),
        make_streamer=broken,
        served=frozenset({"meta"}),
    )
    observed.hooker.attach()
    for _ in range(3):
        model(torch.randn(2, 4))
    assert len(tries) == 1
    assert observed.value("skipped", "0") == 3
    assert observed.is_accounted_for("0")


def test_other_accelerators_are_copied_at_once_and_the_log_says_so(elsewhere, caplog, monkeypatch):
    observed, model, streamer = elsewhere(served=())
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda tensor: torch.ones(tuple(tensor.shape)), raising=True
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model(torch.randn(2, 4))
    assert [tuple(t.shape) for t in observed.tensors()] == [(2, 4)] * 2
    assert sum("synchronously" in record.message for record in caplog.records) == 1
    assert not streamer.waiting


def test_encoders_are_made_ready_for_the_models_devices_before_the_hooks_are(rig, monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"))
    observed = rig(model, {"match": "0"}, attach=False)
    streamer, started = FakeStreamer(), []

    def start(writer, slot, devices, config):
        started.append(list(devices))
        assert not model[0]._forward_hooks
        return streamer

    hooker = observed.hooker
    hooker._offload = Offload(
        hooker._writer,
        observed.slot,
        DeviceConfig(),
        make_streamer=start,
        served=frozenset({"meta"}),
    )
    hooker.attach()
    assert started == [[torch.device("meta")]]
    assert streamer.prepared == [hooker._streams[0].kernel]


def test_the_device_path_gets_its_section_of_the_configuration(rig, monkeypatch):
    seen = []
    monkeypatch.setattr(
        offload, "cuda_streamer", lambda *given: seen.append(given[-1]) or FakeStreamer()
    )
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"))
    observed = rig(model, {"match": "0"}, attach=False)
    hooker = observed.hooker
    config = DeviceConfig(staging_mib=3)
    hooker._offload = Offload(hooker._writer, observed.slot, config, served=frozenset({"meta"}))
    hooker.attach()
    assert seen == [config]
