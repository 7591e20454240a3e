"""The CUDA runtime makes the calls that it should, shown on stand-ins for torch.cuda and libcuda."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import pytest
import torch

from asys_bench.capture.gpu.cuda_runtime import CudaDriver, CudaRuntime
from asys_bench.capture.gpu.pinned_region import PinnedRegion
from asys_bench.capture.gpu.runtime import PinError

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


class RecordingCuda:
    """torch.cuda, as far as the runtime uses it."""

    def __init__(self):
        self.calls = []
        self.now = 0
        self.capturing = {0: False, 1: False}

    def current_device(self):
        return self.now

    def current_stream(self, device):
        return f"current {device}"

    def get_device_name(self, device):
        return "Simulated Accelerator"

    def is_current_stream_capturing(self):
        return self.capturing[self.now]

    def Stream(self, *, device, priority):
        self.calls.append(("Stream", str(device), priority))
        return "side"

    def Event(self, *, blocking):
        self.calls.append(("Event", blocking))
        return "event"

    @contextmanager
    def stream(self, stream):
        self.calls.append(("enter", stream))
        yield
        self.calls.append(("leave", stream))

    @contextmanager
    def device(self, device):
        before, self.now = self.now, device.index
        yield
        self.now = before


class Library:
    """libcuda, as far as the driver uses it: functions that answer `status`."""

    def __init__(self, status=0):
        self.status = status
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*arguments):
            plain = [getattr(argument, "value", argument) for argument in arguments]
            self.calls.append((name, *plain))
            return self.status

        return function

    def cuGetErrorName(self, status, text):
        text._obj.value = b"CUDA_ERROR_OPERATING_SYSTEM"
        return 0


def driver(library):
    return CudaDriver(load=lambda name: library if name == "libcuda.so.1" else None)


def test_the_side_stream_has_the_lowest_priority_and_events_do_not_spin():
    cuda = RecordingCuda()
    runtime = CudaRuntime(cuda, driver(Library()))
    runtime.side_stream(SECOND)
    runtime.event()
    assert cuda.calls == [("Stream", "cuda:1", 0), ("Event", True)]


def test_work_runs_inside_the_stream_that_it_is_issued_to():
    cuda = RecordingCuda()
    runtime = CudaRuntime(cuda, driver(Library()))
    runtime.run("side", lambda a, b: cuda.calls.append((a, b)), 1, 2)
    assert cuda.calls == [("enter", "side"), (1, 2), ("leave", "side")]


def test_inline_work_switches_the_device_only_when_it_has_to():
    cuda = RecordingCuda()
    runtime = CudaRuntime(cuda, driver(Library()))
    seen = []
    runtime.run_inline(FIRST, lambda: seen.append(cuda.now))
    runtime.run_inline(SECOND, lambda: seen.append(cuda.now))
    assert seen == [0, 1]
    assert cuda.now == 0
    assert runtime.current_stream(SECOND) == "current cuda:1"


def test_capturing_is_asked_of_the_tensors_own_device():
    cuda = RecordingCuda()
    runtime = CudaRuntime(cuda, driver(Library()))
    cuda.capturing = {0: False, 1: True}
    assert [runtime.capturing(FIRST), runtime.capturing(SECOND)] == [False, True]


def test_memory_is_registered_for_every_device_and_released():
    library = Library()
    runtime = CudaRuntime(RecordingCuda(), driver(library))
    region = PinnedRegion(runtime, 4096)
    address = region.bytes.data_ptr()
    assert region.pinned
    region.close()
    region.close()
    assert library.calls == [
        ("cuMemHostRegister_v2", address, 4096, 1),
        ("cuMemHostUnregister", address),
    ]


def test_a_refused_registration_names_the_drivers_error():
    region = PinnedRegion(CudaRuntime(RecordingCuda(), driver(Library(status=304))), 4096)
    assert not region.pinned
    assert region.failure == ("cuMemHostRegister of 4096 bytes: CUDA_ERROR_OPERATING_SYSTEM (304)")
    assert int(region.bytes.sum()) == 0, "it works as pageable memory"
    region.close()


def test_without_a_driver_pinning_fails_with_its_reason():
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(PinError, match="libcuda"):
        CudaDriver(load=missing).register(0, 4096)


def test_a_region_that_cannot_be_unregistered_says_so(caplog):
    library = Library()
    region = PinnedRegion(CudaRuntime(RecordingCuda(), driver(library)), 4096)
    library.status = 4
    region.close()
    assert "page-locked until the process ends" in caplog.text


def test_the_commit_thread_leaves_the_global_capture_mode():
    class Exchange(Library):
        def cuThreadExchangeStreamCaptureMode(self, mode):
            assert isinstance(mode._obj, ctypes.c_int)
            self.calls.append(mode._obj.value)
            return 0

    library = Exchange()
    CudaRuntime(RecordingCuda(), driver(library)).enter_commit_thread()
    assert library.calls == [1], "thread-local: a query here does not break a capture elsewhere"


@pytest.mark.parametrize("load", [lambda name: Library(status=1), lambda name: object()])
def test_a_driver_that_cannot_change_the_capture_mode_is_reported(load, caplog):
    CudaRuntime(RecordingCuda(), CudaDriver(load=load)).enter_commit_thread()
    assert "CUDA graph" in caplog.text
