"""The GPU that is measured on, or a simulated one: the same calls, whose figures mean nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[2]))

from asys_bench.sae.training.device import CPU, CudaDevice, TrainingDevice

REAL = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if REAL else torch.device("cpu")


def described() -> dict[str, Any]:
    """What figures are of."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if not REAL:
        return found | {"device": "simulated"}
    properties = torch.cuda.get_device_properties(DEVICE)
    return found | {
        "device": properties.name,
        "cuda": torch.version.cuda,
        "memory_gib": round(properties.total_memory / (1 << 30), 1),
        "multiprocessors": properties.multi_processor_count,
    }


def seconds(work: Callable[[], object]) -> float:
    """How long `work` keeps the device's stream busy."""
    if not REAL:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def finish() -> None:
    """Wait for everything that was given to the device."""
    if REAL:
        torch.cuda.synchronize()


@contextmanager
def training_device() -> Iterator[TrainingDevice]:
    """What an SAE is trained on; simulated: tests/unit/sae/simulated_gpu.py."""
    if REAL:
        yield CudaDevice(0)
        return
    from tests.unit.sae.simulated_gpu import SimulatedGpu

    with SimulatedGpu() as gpu:
        yield gpu


def capture_runtime() -> Any:
    """What hooks ask of a GPU; simulated: tests/unit/capture/gpu/simulated_device.py."""
    if REAL:
        from asys_bench.capture.gpu.cuda_runtime import CudaRuntime

        return CudaRuntime()
    from tests.unit.capture.gpu.simulated_device import SimulatedDevice

    return SimulatedDevice()


class Drain(threading.Thread):
    """Takes every packet from a bus and throws it away, in this process."""

    def __init__(self, bus: Any) -> None:
        super().__init__(daemon=True)
        self._bus, self._ended = bus, threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            with self._bus.pull_batch("g", 256, timeout_s=0.05):
                pass

    def end(self) -> None:
        self._ended.set()
        self.join()


def small_transformer() -> tuple[torch.nn.Module, Callable[[], None]]:
    """A model and one training step of it: 8 layers of 1,024 on 16 sequences of 256 (simulated: tiny)."""
    width, layers, rows, length = (1024, 8, 16, 256) if REAL else (32, 2, 2, 8)
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x = torch.randn(rows, length, width, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (model(x) - x).square().mean().backward()
        optimizer.step()

    return model, step


__all__ = ["CPU", "DEVICE", "REAL"]
