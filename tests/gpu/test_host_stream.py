"""The host's stream and thread are never made to wait, and its results stay what they were."""

from __future__ import annotations

import gc

import pytest
import torch

from asys_bench.capture.gpu.outcome import DeviceDrop
from asys_bench.kernels.identity.kernel import IdentityPreprocessor

from ..unit.capture.gpu.rig import bytes_of
from ..unit.capture.gpu.triton_check import build

BUSY_CYCLES = 2_000_000_000  # of the GPU's clock: about a second


@pytest.fixture
def identity():
    return IdentityPreprocessor("torch")


@pytest.fixture
def sync_is_an_error():
    """torch raises on any call of this process that would synchronise a stream."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("encoding", ["identity", "int8", "token_sample.rows7.seed1+int8"])
def test_submit_returns_while_the_host_stream_is_still_busy(gpu, encoding):
    rig = gpu()
    kernel = build(encoding)
    tensor = torch.randn(64, 64, device=rig.device)
    rig.streamer.prepare(kernel, [torch.float32])
    rig.submit(tensor, kernel)
    rig.payloads()
    torch.cuda._sleep(BUSY_CYCLES)
    for _ in range(8):
        assert rig.submit(tensor, kernel) is None
    assert not torch.cuda.current_stream().query(), "submit waited for the host's stream"
    assert rig.streamer.account().in_flight == 8
    rig.payloads()


def test_no_call_synchronises(gpu, identity, sync_is_an_error):
    rig = gpu()
    tensor = torch.randn(64, 64, device=rig.device)
    for _ in range(16):
        rig.submit(tensor, identity, timeout_s=30.0)
    rig.payloads()


def test_the_hosts_stream_does_not_wait_for_the_copy(gpu, identity):
    rig = gpu(staging_mib=1024, buffer_mib=1024)
    tensor = torch.zeros(1 << 30, dtype=torch.uint8, device=rig.device)
    torch.cuda.synchronize()
    assert rig.submit(tensor, identity) is None
    after = torch.cuda.Event()
    after.record()
    after.synchronize()
    assert rig.streamer.account().in_flight == 1, "a copy of 1 GiB takes tens of milliseconds"
    rig.payloads()


@pytest.mark.parametrize("encoding", ["identity", "int8"])
def test_what_arrives_is_what_the_hook_saw_though_the_host_overwrites_it(gpu, encoding):
    rig = gpu(max_in_flight=256)
    kernel, identity_of = build(encoding), {}
    tensor = torch.zeros(2048, 1024, device=rig.device)
    for value in range(100):
        tensor.fill_(float(value))
        if rig.submit(tensor, kernel, timeout_s=30.0) is None:
            identity_of[rig.submitted - 1] = value
    assert rig.streamer.drain(60) == 0
    for meta, payload in rig.producer.packets:
        value = float(identity_of[meta.host_step])
        out = bytearray(kernel.encoded_bytes(tensor))
        kernel.encode(torch.full((2048, 1024), value), memoryview(out))
        assert payload == bytes(out)
    account = rig.streamer.account()
    assert account.imbalance == 0
    assert account.committed == 100


def test_training_is_bit_identical_under_observation(gpu, identity):
    def train(rig):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(inplace=True), torch.nn.Linear(256, 8)
        ).cuda()
        if rig is not None:
            for module in model:
                module.register_forward_hook(lambda m, a, out: rig.submit(out, identity) and None)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(20):
            loss = model(torch.randn(32, 64, device="cuda")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    plain, observed = train(None), train(gpu())
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))


def test_a_graph_is_captured_and_replayed_with_hooks_and_packets_in_flight(gpu, identity):
    rig = gpu()
    x = torch.ones(256, 256, device=rig.device)
    for _ in range(32):
        rig.submit(x, identity)  # the commit thread queries events during the capture
    graph = torch.cuda.CUDAGraph()
    drops = []
    with torch.cuda.graph(graph):
        y = x * 2
        drops.append(rig.submit(y, identity))
    graph.replay()
    torch.cuda.synchronize()
    assert drops == [DeviceDrop.GRAPH_CAPTURE]
    assert float(y.sum()) == 2 * 256 * 256
    assert rig.submit(y, identity) is None
    assert rig.payloads()[-1] == bytes_of(y.cpu())


def test_tensors_are_freed_once_they_are_settled(gpu, identity):
    rig = gpu()
    rig.submit(torch.ones(4, device=rig.device), identity)
    rig.payloads()
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        rig.submit(torch.ones(1 << 20, device=rig.device), identity, timeout_s=30.0)
    rig.payloads()
    torch.cuda.synchronize()
    torch.ones(1, device=rig.device)  # the allocator looks at its events when it is next used
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 1024


def test_staging_memory_is_page_locked_and_both_bandwidths_were_measured():
    from asys_bench.capture.gpu.cuda_runtime import CudaRuntime
    from asys_bench.capture.gpu.streamer import DeviceStreamer
    from asys_bench.contracts.stats import StatsPage

    from ..unit.capture.gpu.rig import MemoryProducer

    page, producer = StatsPage.create(["host"]), MemoryProducer()
    device = torch.device("cuda", torch.cuda.current_device())
    streamer = DeviceStreamer(
        CudaRuntime(), producer, producer.lock, devices=(device,), slot=page.slot("host")
    )
    metrics = page.slot("host").metrics()
    assert streamer.pinned
    for memory in ("pinned", "pageable"):
        assert metrics[f"device_copy_gbps{{device={device},memory={memory}}}"].value > 0
    streamer.close()
    del metrics
    page.close()
