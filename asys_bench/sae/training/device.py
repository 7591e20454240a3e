"""Where an SAE is trained: on the CPU, or on a GPU that its rows are copied to.

A `TrainingDevice` is what a trainer asks of it: memory, the kernels, and copies that run beside the
steps. `CPU` is the default; a test has one whose tensors only say that they are elsewhere
(tests/unit/sae/simulated_gpu.py). Nothing here touches CUDA before a `CudaDevice` is made, which makes
the process's context: a worker does so after the fork, the fork server never.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.footprint import Footprint
from asys_bench.sae.kernels.choice import faster_kernels
from asys_bench.sae.kernels.compiled_kernels import CompiledKernels
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.system.allocator import keep_freed_memory

log = logging.getLogger(__name__)
USUAL_L0 = 64
"""Active features of a row that kernels are compared at, where a configuration does not say it."""
Event = Any
"""A point in the work of one queue of the device."""


class DeviceMemoryError(RuntimeError):
    """An SAE does not fit its GPU; says the sizes and what to lower."""


class DeviceUnavailableError(RuntimeError):
    """The device cannot be used here; says why."""


def prepare_process() -> None:
    """Once in a process that trains: freed memory is kept, and numbers below 1.2e-38 are zero, into which
    Adam's moments of silent features fade."""
    torch.set_flush_denormal(True)
    keep_freed_memory()


class TrainingDevice:
    """The CPU, where rows are trained on in the memory that they are in; the base of the others."""

    name = "cpu"
    """As it is configured: `cpu`, `cuda:1`."""
    tensors = torch.device("cpu")
    """Where weights and steps are."""

    def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels:
        """Those of one SAE."""
        return CompiledKernels(config.work_threads, rough=config.rough_products)

    @contextmanager
    def holding(self, what: str, size: Footprint) -> Iterator[None]:
        """Raises DeviceMemoryError where a GPU has no memory left within the block."""
        yield

    def require(self, what: str, size: Footprint) -> None:
        """Raises DeviceMemoryError where less of a GPU is free than `size` says, before any of it is
        taken. A run's forecast looks after the machine's own memory."""


class Gpu(TrainingDevice, ABC):
    """A device with memory and a clock of its own. The SAEs of one process share it."""

    def __init__(self, tensors: torch.device, name: str) -> None:
        self.tensors, self.name = tensors, name
        self.gathering = ThreadPoolExecutor(1, "sae-rows", _one_thread)
        """Puts the rows of a next batch together while a step runs."""

    @abstractmethod
    def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels: ...

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, all) bytes of the device, as far as this process may take them."""

    @abstractmethod
    def pinned(self, rows: int, width: int) -> torch.Tensor:
        """Page-locked float32 memory of the host."""

    @abstractmethod
    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event | None) -> Event:
        """Begin to copy `source` (pinned) to `target` (the device's) once `after` is reached; what the
        copy ends with. Does not wait."""

    @abstractmethod
    def reached(self) -> Event:
        """The end of everything that this thread has given to the device so far."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """What is given to the device from now on begins after `event`; this thread does not wait."""

    @abstractmethod
    def finish(self, event: Event) -> None:
        """This thread waits for `event`."""

    @contextmanager
    def holding(self, what: str, size: Footprint) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(self._shortage(what, size)) from error

    def require(self, what: str, size: Footprint) -> None:
        if size.device_bytes > self.memory()[0]:
            raise DeviceMemoryError(self._shortage(what, size))

    def _shortage(self, what: str, size: Footprint) -> str:
        free, total = self.memory()
        return (
            f"{what}: {self.name} is out of memory: an SAE of d_in {size.d_in} and d_sae {size.d_sae} "
            f"takes about {_gib(size.device_bytes)} there (weights {_gib(size.weights_bytes)}, optimizer "
            f"and last good state {_gib(size.device_optimizer_bytes)}, a step {_gib(size.step_bytes)}), and "
            f"{_gib(free)} of {_gib(total)} are free; lower d_sae, expansion_factor or batch_rows, name "
            "another GPU, or set device: cpu"
        )


CPU = TrainingDevice()


class CudaDevice(Gpu):
    """One NVIDIA GPU. Making it makes this process's CUDA context, about half a GiB.

    index: as torch counts. most_bytes: torch takes no more than this of it, the context not counted.
    `cuda` is replaced in tests.
    """

    def __init__(self, index: int, most_bytes: int | None = None, cuda: Any = torch.cuda) -> None:
        super().__init__(torch.device("cuda", index), f"cuda:{index}")
        self._cuda, self._most = cuda, most_bytes
        count = int(cuda.device_count()) if cuda.is_available() else 0
        if not count:
            raise DeviceUnavailableError(
                f"device {self.name}: torch {torch.__version__} finds no CUDA device here"
            )
        if index >= count:
            raise DeviceUnavailableError(
                f"device {self.name}: this process sees {count} GPU{'s' if count > 1 else ''}, "
                f"cuda:0 to cuda:{count - 1}"
            )
        cuda.set_device(index)
        if most_bytes is not None:
            total = int(cuda.mem_get_info(index)[1])
            cuda.set_per_process_memory_fraction(min(1.0, most_bytes / total), index)
        self._copies = cuda.Stream(device=index)

    def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels:
        rough = config.dtype != "float32" and bool(self._cuda.is_bf16_supported())
        return faster_kernels(
            config.batch_rows,
            max(sae.d_in, sae.d_out),
            sae.d_sae,
            int(config.wanted_l0 or USUAL_L0),
            self.tensors,
            self._seconds,
            rough=rough,
        )

    def _seconds(self, work: Callable[[], Any]) -> float:
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def memory(self) -> tuple[int, int]:
        free, total = self._cuda.mem_get_info(self.tensors.index)
        if self._most is None:
            return int(free), int(total)
        taken = int(self._cuda.memory_reserved(self.tensors.index))
        return max(0, min(int(free), self._most - taken)), min(int(total), self._most)

    def pinned(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty(rows, width, pin_memory=True)

    def copy(self, source: torch.Tensor, target: torch.Tensor, after: Event | None) -> Event:
        with self._cuda.stream(self._copies):
            if after is not None:
                self._copies.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self._copies.record_event()

    def reached(self) -> Event:
        return self._cuda.current_stream(self.tensors.index).record_event()

    def wait(self, event: Event) -> None:
        self._cuda.current_stream(self.tensors.index).wait_event(event)

    def finish(self, event: Event) -> None:
        event.synchronize()


def _gib(nbytes: float) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"


def _one_thread() -> None:
    torch.set_num_threads(1)


def open_device(wish: str, most_bytes: int | None = None, cuda: Any = torch.cuda) -> TrainingDevice:
    """The device that `wish` names: `cpu`, `cuda:N`, `cuda` (the GPU with the most memory free), `auto`
    (that, or the CPU where there is none).

    Raises:
        DeviceUnavailableError: there is no such GPU.
    """
    if wish == "cpu" or (wish == "auto" and not cuda.is_available()):
        return CPU
    if wish.startswith("cuda:"):
        return CudaDevice(int(wish.removeprefix("cuda:")), most_bytes, cuda)
    free = [int(cuda.mem_get_info(index)[0]) for index in range(cuda.device_count())]
    return CudaDevice(free.index(max(free)) if free else 0, most_bytes, cuda)
