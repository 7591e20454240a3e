"""A device without a device: streams that run only when they are told to, in any legal order.

Work issued to a stream is queued, with weak references to the tensors that it will touch (memory of
the path itself excepted). `step` runs the next operation of one stream, if it may run. Work that finds
a tensor gone, or memory reused while it was still to be read, is a violation that tests look for.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from asys_bench.capture.gpu.runtime import PinError


class DeviceError(RuntimeError):
    """What a broken device raises."""


class Mark:
    """One recording of an event."""

    def __init__(self) -> None:
        self.done = False


class Event:
    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> None:
        self._device.note("record", stream)
        mark = self.mark = Mark()

        def reached() -> None:
            mark.done = True

        stream.queue.append(("mark", reached))

    def query(self) -> bool:
        self._device.raise_if_broken()
        return self.mark is None or self.mark.done

    def synchronize(self) -> None:
        self._device.note("synchronize", None)
        self._device.wait_for(self)


class Stream:
    def __init__(self, device: SimulatedDevice, name: str) -> None:
        self._device = device
        self.name = name
        self.queue: deque[tuple[str, Any]] = deque()

    def wait_event(self, event: Event) -> None:
        self._device.note("wait", self)
        if event.mark is not None:
            self.queue.append(("wait", event.mark))


class SimulatedDevice:
    """A `DeviceRuntime` over CPU tensors.

    refuses_to_pin: the reason that `register` gives. automatic: `synchronize` runs the device until
    the event (set-up, threads); otherwise waiting is a violation.
    """

    def __init__(self, *, refuses_to_pin: str | None = None) -> None:
        self.lock = threading.RLock()
        self.moved = threading.Condition(self.lock)
        self.refuses_to_pin = refuses_to_pin
        self.automatic = True
        self.broken: Exception | None = None
        self.is_capturing = False
        self.calls: list[tuple[str, str | None, int]] = []
        self.violations: list[str] = []
        self.registered: set[int] = set()
        self.streams: dict[str, Stream] = {}
        self._own: set[int] = set()

    def stream(self, name: str) -> Stream:
        return self.streams.setdefault(name, Stream(self, name))

    def host(self, device: torch.device) -> Stream:
        return self.stream(f"host {device}")

    # What tests do ---------------------------------------------------------------------------------
    def step(self, stream: Stream) -> bool:
        """Run the next operation of `stream`; False if there is none or it has to wait."""
        with self.lock:
            if self.broken is not None or not stream.queue:
                return False
            kind, what = stream.queue[0]
            if kind == "wait" and not what.done:
                return False
            stream.queue.popleft()
            if kind != "wait":
                what()
            self.moved.notify_all()
            return True

    def finish(self) -> None:
        """Run everything that was issued."""
        while any(self.step(stream) for stream in list(self.streams.values())):
            pass

    def write(self, tensor: torch.Tensor, value: float, device: torch.device) -> None:
        """An operation of the host that changes `tensor` in place."""
        self.host(device).queue.append(("host", lambda: tensor.fill_(value)))

    def break_down(self, error: Exception) -> None:
        with self.lock:
            self.broken = error
            self.moved.notify_all()

    def note(self, what: str, stream: Stream | None) -> None:
        self.calls.append((what, stream.name if stream else None, threading.get_ident()))

    def raise_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken

    def wait_for(self, event: Event) -> None:
        with self.lock:
            if self.automatic:
                self.finish()
            while not event.query():
                if not self.moved.wait(timeout=60):
                    self.violations.append("waited for an event that nobody completes")
                    return

    # DeviceRuntime ---------------------------------------------------------------------------------
    def name(self, device: torch.device) -> str:
        return f"simulated {device}"

    def current_stream(self, device: torch.device) -> Stream:
        return self.host(device)

    def side_stream(self, device: torch.device) -> Stream:
        return self.stream(f"side {device}")

    def event(self) -> Event:
        return Event(self)

    def capturing(self, device: torch.device) -> bool:
        return self.is_capturing

    def run(self, stream: Stream, work: Callable[..., object], *operands: Any) -> None:
        self.raise_if_broken()
        self.note("run", stream)
        kept = [self._weakly(operand) for operand in operands]

        def later() -> None:
            found = [take() for take in kept]
            if any(operand is None for operand in found):
                self.violations.append(f"{stream.name} touched a tensor that was freed")
            else:
                work(*found)

        stream.queue.append(("work", later))

    def run_inline(self, device: torch.device, work: Callable[..., object], *operands: Any) -> None:
        # Strong references: the allocator reuses memory in the order of the host's own stream.
        self.raise_if_broken()
        stream = self.host(device)
        self.note("run", stream)
        stream.queue.append(("work", lambda: work(*operands)))

    def buffer(self, nbytes: int, device: torch.device, stream: Stream) -> torch.Tensor:
        memory = torch.full((nbytes,), 0xEE, dtype=torch.uint8)
        self._own.add(storage_of(memory))
        return memory

    def register(self, address: int, nbytes: int) -> None:
        self._own.add(address)
        if self.refuses_to_pin is not None:
            raise PinError(self.refuses_to_pin)
        self.registered.add(address)

    def unregister(self, address: int) -> None:
        self.registered.remove(address)

    def enter_commit_thread(self) -> None:
        self.note("enter", None)

    def _weakly(self, operand: Any) -> Callable[[], Any]:
        if isinstance(operand, torch.Tensor) and storage_of(operand) not in self._own:
            return weakref.ref(operand)
        return lambda: operand


def storage_of(tensor: torch.Tensor) -> int:
    """The address of the memory behind a tensor and its views."""
    return tensor.untyped_storage().data_ptr()
