"""The ring's capture port does what the general path does, or hands the call back untouched."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.backends.cpp_spmc.bus import CppShardedSPMCBus
from asys_bench.backends.cpp_spmc.native import unavailable
from asys_bench.backends.ring_client.options import RingOptions
from asys_bench.contracts.bus import BusError, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.capture_port import PORT_ACCEPTED, PORT_NOT_MINE, PORT_REFUSED, PortCells
from asys_bench.contracts.packet import DTYPES, Kind, PacketMeta
from asys_bench.contracts.stats import StatsPage

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
PLAIN = [d for d in DTYPES if d not in (torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)]
TAGS = (7, 3, 2, 1, 5, 0.5)
"""host_step, weights_version, call_index, microbatch, token_position, sampling_rate"""


class Rig:
    def __init__(self, packets=64, nbytes=4 << 20, **options):
        self.page = StatsPage.create(["host"])
        self.bus = CppShardedSPMCBus(
            BusRequest(
                (GroupSpec("g", Delivery.AT_MOST_ONCE),),
                capacity_packets=packets,
                capacity_bytes=nbytes,
                names=("layer",),
                options=RingOptions(),
                **options,
            )
        )
        slot = self.page.slot("host")
        self.counters = {n: slot.counter(n) for n in ("calls", "captured", "dropped", "nbytes")}
        self.latency = slot.histogram("latency")
        self.cells = PortCells(
            slot.cells,
            *(counter.cell for counter in self.counters.values()),
            self.latency.cell,
        )
        self.producer = self.bus.producer()
        self.meta = PacketMeta(self.bus.intern("layer"), int(Kind.INPUT), 0, ())
        self.port = self.producer.capture_port(self.meta, self.cells)

    def counts(self):
        return {name: counter.value for name, counter in self.counters.items()}

    def close(self):
        self.port.close()
        self.bus.close()
        self.page.close()


@pytest.fixture
def rig():
    made = []

    def make(**options):
        made.append(Rig(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 3), max_size=8),  # at most 52 KiB: it fits the ring
    dtype=st.sampled_from(PLAIN),
    checksum=st.booleans(),
    grad=st.booleans(),
)
def test_a_captured_packet_is_the_tensor_with_its_tags(shape, dtype, checksum, grad):
    rig = Rig(checksum=checksum)
    try:
        tensor = (torch.rand(shape) * 100).to(dtype)
        if grad and dtype.is_floating_point:
            tensor.requires_grad_()
            tensor = tensor * 1
        assert rig.port(tensor, *TAGS) == PORT_ACCEPTED
        with rig.bus.subscribe("g", "m") as reader, reader.pull_batch(8, 1.0) as lease:
            (packet,) = lease
            assert torch.equal(packet.raw_tensor(), tensor.detach())
            assert packet.shape == tuple(shape)
            assert packet.verify()
            assert (packet.crc is not None) is checksum
            found = (packet.host_step, packet.weights_version, packet.call_index,
                     packet.microbatch, packet.token_position, packet.sampling_rate)  # fmt: skip
            assert found == TAGS
            assert (packet.hook_id, packet.kind) == (rig.meta.hook_id, Kind.INPUT)
            assert packet.timestamp_ns > 0
            del packet
        assert rig.counts() == {"calls": 1, "captured": 1, "dropped": 0, "nbytes": tensor.nbytes}
        assert rig.latency.snapshot().count == 1
    finally:
        rig.close()


def strange_tensors():
    class Sub(torch.Tensor):
        pass

    yield "non-contiguous", torch.rand(4, 4).t()
    yield "expanded", torch.rand(1, 4).expand(3, 4)
    yield "empty", torch.rand(0, 4)
    yield "meta", torch.rand(4, device="meta")
    yield "subclass", torch.rand(4).as_subclass(Sub)
    yield "complex", torch.rand(4, dtype=torch.complex64)
    yield "one lazily negated element", torch.rand(1, 1, dtype=torch.complex64).conj().imag
    yield "sparse", torch.eye(4).to_sparse()
    yield "quantised", torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8)
    yield "larger than a mebibyte", torch.rand((1 << 18) + 1)
    yield "nine dimensions", torch.rand((1,) * 9)
    yield "no tensor", [1.0]
    yield "none", None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_it_does_not_know_is_handed_back_untouched(rig):
    made = rig()
    for what, value in strange_tensors():
        assert made.port(value, *TAGS) == PORT_NOT_MINE, what
    assert made.counts() == {"calls": 0, "captured": 0, "dropped": 0, "nbytes": 0}
    assert made.bus.account().produced == 0


def test_a_full_bus_refuses_and_everybody_counts_it(rig):
    made = rig(packets=4)
    tensor = torch.rand(8)
    outcomes = [made.port(tensor, *TAGS) for _ in range(7)]
    assert outcomes == [PORT_ACCEPTED] * 4 + [PORT_REFUSED] * 3
    assert made.counts() == {"calls": 7, "captured": 4, "dropped": 3, "nbytes": 4 * tensor.nbytes}
    assert made.bus.account().dropped["full"] == 3
    assert made.latency.snapshot().count == 7


def test_an_outstanding_reservation_hands_the_call_back(rig):
    made = rig()
    reservation = made.producer.reserve(64)
    assert made.port(torch.rand(4), *TAGS) == PORT_NOT_MINE
    reservation.abort()
    assert made.port(torch.rand(4), *TAGS) == PORT_ACCEPTED


def test_a_closed_port_does_nothing_and_lets_go_of_the_page(rig):
    made = rig()
    made.port.close()
    made.port.close()
    assert made.port(torch.rand(4), *TAGS) == PORT_NOT_MINE
    made.page.close()  # BufferError if the port still held it


def test_wrong_arguments_and_cells_are_errors(rig):
    made = rig()
    with pytest.raises(TypeError, match="needs tensor, host_step"):
        made.port(torch.rand(4))
    with pytest.raises(TypeError):
        made.port(torch.rand(4), "seven", *TAGS[1:])
    outside = PortCells(made.cells.cells, 0, 0, 0, 0, len(made.cells.cells) - 1)
    with pytest.raises(BusError, match="lies outside"):
        made.producer.capture_port(made.meta, outside)


def test_threads_share_a_port_and_a_producer_without_losing_a_packet(rig):
    made = rig(packets=4096, nbytes=64 << 20)
    tensor, big = torch.rand(64), torch.rand(1 << 15)  # big: its push releases the GIL
    lock = threading.Lock()
    taken = [0] * 3

    def through_the_port(index):
        for _ in range(300):
            if made.port(tensor, *TAGS) == PORT_ACCEPTED:
                taken[index] += 1

    def through_the_producer():
        for _ in range(100):
            with lock:
                taken[2] += made.producer.try_push(made.meta._replace(shape=(1 << 15,)), big)

    threads = [threading.Thread(target=through_the_port, args=(i,)) for i in range(2)]
    threads.append(threading.Thread(target=through_the_producer))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    account = made.bus.account()
    assert account.produced == sum(taken)
    assert not account.dropped_total
