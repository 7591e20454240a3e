"""Whatever the device does first, and whatever the host does meanwhile, the invariants hold."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.config.sections.bus import DeviceConfig

from .rig import CPU, SECOND, OnSecondDevice, Rig, bytes_of
from .simulated_device import SimulatedDevice

STREAMS = [f"{kind} {device}" for device in (CPU, SECOND) for kind in ("host", "side")]

ACTION = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 3), st.sampled_from(["plain", "strided"])),
    st.tuples(st.just("write"), st.integers(0, 3)),
    st.tuples(st.just("step"), st.sampled_from(STREAMS), st.integers(1, 6)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("refuse"), st.booleans()),
    st.tuples(st.just("free"), st.integers(0, 3)),
)


class Host:
    """Four tensors (two on each device), and what they hold at this point of the host's streams."""

    def __init__(self, rig):
        self.rig = rig
        self.tensors = [self.fresh(index) for index in range(4)]
        self.values = [0.0] * 4
        self.expected = {}

    def fresh(self, index):
        tensor = torch.zeros(40 + 60_000 * (index % 2), 2)
        return tensor.as_subclass(OnSecondDevice) if index >= 2 else tensor

    def submit(self, index, layout):
        tensor = self.tensors[index]
        if layout == "strided":
            tensor = tensor.t()
        number = self.rig.submitted
        drop = self.rig.submit(tensor, key=f"hook {index}")
        if drop is None:
            self.expected[number] = bytes_of(torch.full(tensor.shape, self.values[index]))
        return drop

    def write(self, index):
        self.values[index] += 1.0
        tensor = self.tensors[index]
        self.rig.device.write(tensor, self.values[index], tensor.device)

    def free(self, index):
        """The host drops its tensor and allocates another."""
        self.tensors[index] = self.fresh(index)
        self.values[index] = 0.0


@pytest.mark.rest
@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(ACTION, min_size=12, max_size=80),
    last=st.permutations(STREAMS),
    pins=st.booleans(),
)
def test_order_content_memory_and_counts(actions, last, pins):
    device = SimulatedDevice(refuses_to_pin=None if pins else "no")
    options = DeviceConfig(staging_mib=1, buffer_mib=1, max_in_flight=3)
    rig = Rig(device=device, options=options, devices=(CPU, SECOND))
    host = Host(rig)
    for action, *arguments in actions:
        if action == "submit":
            host.submit(*arguments)
        elif action == "write":
            host.write(*arguments)
        elif action == "free":
            host.free(*arguments)
        elif action == "step":
            name, count = arguments
            for _ in range(count):
                device.step(device.stream(name))
        elif action == "refuse":
            rig.producer.refuses = arguments[0]
        else:
            rig.streamer.settle()
        account = rig.streamer.account()
        assert account.imbalance == 0
        assert account.in_flight <= 3
        assert 0 <= rig.streamer.fill_ratio <= 1
    while rig.streamer.settle() or any(device.step(device.stream(name)) for name in last):
        pass
    account = rig.streamer.account()
    assert (account.in_flight, account.imbalance) == (0, 0)
    assert account.committed == len(rig.numbers)
    assert rig.numbers == sorted(set(rig.numbers)), "the order of submission"
    for meta, payload in rig.producer.packets:
        assert payload == host.expected[meta.host_step], "the tensor as it was at the hook"
    assert device.violations == []
    assert rig.waits() == [], "nobody waits but the commit thread, which this test has none of"
    settled = rig.streamer.collect()
    assert sum(s.packets for s in settled) == account.submitted
    assert sum(s.packets for s in settled if s.drop is None) == account.committed
    assert rig.streamer.close() == 0
    assert device.registered == set()


@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_the_host_may_drop_its_tensor_at_once_and_we_do_so_when_it_is_settled(layout):
    rig = Rig(options=DeviceConfig(staging_mib=1, buffer_mib=1))
    owner = np.arange(6.0).reshape(2, 3)
    alive = weakref.ref(owner)
    tensor = torch.from_numpy(owner)
    del owner
    expected = bytes_of(tensor if layout == "plain" else tensor.t())
    rig.submit(tensor if layout == "plain" else tensor.t())
    del tensor
    assert alive() is not None
    rig.settle_all()
    gc.collect()
    assert alive() is None
    assert rig.payloads() == [expected]
    assert rig.device.violations == []
    rig.streamer.close()
