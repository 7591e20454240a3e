"""On a GPU, every kernel writes the bytes of its torch reference, and they arrive."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.gpu.cuda_runtime import CudaRuntime
from asys_bench.capture.gpu.route import route_of
from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.kernels.identity.kernel import IdentityPreprocessor

from ..unit.capture.gpu.rig import meta_builder
from ..unit.capture.gpu.triton_check import DTYPES, ENCODINGS, build, expected, tensors

pytestmark = pytest.mark.timeout(900)  # cold compiles


def on_gpu(tensor, device):
    """A copy with the same strides."""
    base = torch.empty(0, dtype=tensor.dtype, device=device)
    storage = tensor.untyped_storage().to(device=str(device))
    return base.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_payloads_are_those_of_the_reference(gpu, encoding):
    rig = gpu(max_in_flight=1024)
    kernel, reference = build(encoding), build(encoding)
    assert not route_of(kernel).encode_on_host
    names, wanted = [], []
    for dtype in DTYPES:
        for name, tensor in tensors(dtype):
            assert rig.submit(on_gpu(tensor, rig.device), kernel, timeout_s=60.0) is None
            names.append(f"{name} {dtype}")
            wanted.append(expected(reference, tensor)[0])
    got = rig.payloads()
    assert [name for name, a, b in zip(names, got, wanted, strict=True) if a != b] == []


def test_large_activations_arrive_whole(gpu):
    rig = gpu()
    for encoding in ("identity", "int8", "topk.k32.bfloat16"):
        tensor = torch.randn(1024, 4096, device=rig.device).to(torch.bfloat16)
        kernel = build(encoding)
        assert rig.submit(tensor, kernel, timeout_s=60.0) is None
        assert rig.payloads()[-1] == expected(build(encoding), tensor.cpu())[0]


def test_packets_cross_a_real_bus_in_order(bus, bus_lock):
    device = torch.device("cuda", torch.cuda.current_device())
    streamer = DeviceStreamer(
        CudaRuntime(), bus.producer(0), bus_lock, DeviceConfig(), devices=(device,)
    )
    kernel = IdentityPreprocessor("torch")
    sent = [torch.full((256, 64), float(n), device=device) for n in range(300)]
    for number, tensor in enumerate(sent):
        assert streamer.submit(tensor, kernel, meta_builder(number), key="a", timeout_s=30) is None
    assert streamer.close(60) == 0
    received = []
    while len(received) < len(sent):
        with bus.pull_batch("g", 64, timeout_s=10.0) as lease:
            assert len(lease), "packets are missing"
            received += [(p.host_step, float(p.raw_tensor()[0, 0])) for p in lease]
    assert received == [(n, float(n)) for n in range(300)]
