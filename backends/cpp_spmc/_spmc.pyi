"""Types of the compiled module (bindings.cpp, py_producer.cpp, py_consumer.cpp)."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.contracts import bus
from asys_bench.contracts.capture_port import Decision
from asys_bench.contracts.packet import PacketMeta

class Producer:
    max_payload_bytes: int
    def try_push(self, meta: PacketMeta, payload: bus.Payload) -> bool: ...
    def push(self, meta: PacketMeta, payload: bus.Payload, timeout_s: float) -> bool: ...
    def try_push_many(self, meta: PacketMeta, payloads: npt.NDArray[Any] | torch.Tensor) -> int: ...
    def try_push_frames(
        self, meta: PacketMeta, data: memoryview, places: npt.NDArray[np.int64]
    ) -> int: ...
    def reserve(self, nbytes: int) -> Reservation | None: ...
    def fill_ratio(self) -> float | None:
        """None while a push is under way in another thread."""
    def capture_port(
        self,
        meta: PacketMeta,
        cells: memoryview,
        calls: int,
        captured: int,
        dropped: int,
        nbytes: int,
        latency: int,
    ) -> CapturePort: ...
    @property
    def pushing(self) -> bool: ...
    @property
    def last_refusal(self) -> bus.DropReason | None: ...

class CapturePort:
    def __call__(
        self,
        tensor: torch.Tensor,
        host_step: int,
        weights_version: int,
        call_index: int,
        microbatch: int,
        token_position: int,
        sampling_rate: float,
        /,
    ) -> int: ...
    def direct(self, decision: Decision) -> DirectCapture: ...
    def close(self) -> None: ...

class DirectCapture:
    def __call__(self, output: Any, /) -> int: ...

class HookCall:
    """Base of classes of forward hooks whose calls are compiled (`hook_class.compiled`)."""

    def bind(self, direct: DirectCapture, phase: bool | None, /) -> None: ...
    @staticmethod
    def take_calls(hook: type[HookCall], /) -> None:
        """What calls an instance of `hook` runs compiled code from now on, not its `__call__`."""

# At run time these two are registered as virtual subclasses (native.py).
class Reservation(bus.Reservation):
    def commit(self, meta: PacketMeta, nbytes: int | None = None) -> bool: ...
    def abort(self) -> None: ...

class Lease(bus.Lease):
    @property
    def packets(self) -> list[Any]: ...
    def headers(self) -> bytes: ...
    def copy_frames(self, out: memoryview, places: npt.NDArray[np.int64]) -> None: ...
    def release(self) -> int: ...
    def give_back(self) -> None: ...

class Consumer:
    def pull_batch(
        self, max_packets: int = 64, timeout_s: float = 0.05, min_packets: int = 1
    ) -> Lease: ...
    @property
    def ended(self) -> bool: ...
    def close(self) -> None: ...

class Group:
    index: int
    name: str
    at_least_once: bool

class Segment:
    fd: int
    shards: int
    segment_bytes: int
    max_payload: int
    def account(
        self,
    ) -> tuple[
        int,
        int,
        tuple[int, int, int, int],
        list[tuple[str, int, int, int, int, int, int]],
    ]:
        """accepted, payload bytes, drops by reason, per group: the fields of GroupAccount."""
    def intern(self, name: str) -> int: ...
    def name_of(self, name_id: int) -> str: ...
    def name_count(self) -> int: ...
    def add_group(
        self, name: str, at_least_once: bool, temporary: bool, hooks: list[int] | None
    ) -> Group: ...
    def find_group(self, name: str) -> Group | None: ...
    def group_names(self) -> list[str]: ...
    def subscribe(self, name: str, spin_us: int, poll_us: int) -> Consumer: ...
    def producer(
        self,
        shard: int,
        streaming_threshold: int,
        window: int,
        source: int | None = None,
    ) -> Producer:
        """Takes the shard for this process, once."""
    def refuse(self) -> None: ...
    def finish(self) -> None: ...
    def unlink(self) -> None: ...
    def retire(self, name: str) -> None: ...
    def reap(self, pid: int) -> int: ...
    def reap_dead(self) -> int: ...

def setup(*contract: object) -> None: ...
def layout() -> dict[str, int]: ...
def crc32c(data: bytes | bytearray | memoryview) -> int: ...
def create(
    *,
    shards: int,
    slots: int,
    arena_bytes: int,
    max_payload: int,
    source: int,
    initial_seq: int,
    checksum: bool,
    name: str,
) -> Segment: ...
def attach_fd(fd: int) -> Segment: ...
def attach_name(name: str) -> Segment: ...
