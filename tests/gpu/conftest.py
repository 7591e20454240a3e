"""What a person with a GPU runs: `pytest tests/gpu`. Everything is skipped without one."""

from __future__ import annotations

import threading

import pytest
import torch

from asys_bench.capture.gpu.cuda_runtime import CudaRuntime
from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig, DeviceConfig
from asys_bench.contracts.bus import GroupSpec

from ..unit.capture.gpu.rig import MemoryProducer, meta_builder

NO_GPU = pytest.mark.skip(reason="no CUDA device: these tests need a GPU and a CUDA build of torch")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu" in item.path.as_posix():
                item.add_marker(NO_GPU)


class GpuRig:
    """A streamer on the first GPU that keeps what arrives."""

    def __init__(self, **options):
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.producer = MemoryProducer()
        self.streamer = DeviceStreamer(
            CudaRuntime(),
            self.producer,
            self.producer.lock,
            DeviceConfig(**options),
            devices=(self.device,),
        )
        self.submitted = 0

    def submit(self, tensor, preprocessor, **more):
        number = self.submitted
        self.submitted += 1
        more.setdefault("key", "hook")
        return self.streamer.submit(tensor, preprocessor, meta_builder(number), **more)

    def payloads(self):
        assert self.streamer.drain(60) == 0
        return [payload for _, payload in self.producer.packets]


@pytest.fixture
def gpu():
    """A factory of rigs: `gpu(staging_mib=...)`; options as in `DeviceConfig`."""
    rigs = []

    def make(**options):
        rigs.append(GpuRig(**options))
        return rigs[-1]

    yield make
    for rig in rigs:
        assert rig.streamer.close(60) == 0


@pytest.fixture(params=["cpp_spmc", "numba_ring", "mp_queue"])
def bus(request):
    made = create_data_bus(BusConfig(backend=request.param), [GroupSpec("g")])
    yield made
    made.close()


@pytest.fixture
def bus_lock():
    return threading.Lock()
