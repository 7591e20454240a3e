"""Offload: how tensors of other devices reach the bus, and the counting of those that are under way.

CUDA tensors go through `capture.gpu`: copied on a side stream, committed when they have arrived.
It is imported and started when a model has CUDA parameters, or by the first CUDA tensor. Other
accelerators have no such path yet: their tensors are copied synchronously, and the log says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from asys_bench.capture.hook_stream import HookStream, Writer
from asys_bench.capture.notices import Notices
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.packet import PacketMeta
from asys_bench.contracts.preprocessor import Encoded, Preprocessor
from asys_bench.contracts.stats import Slot

log = logging.getLogger(__name__)

SERVED = frozenset({"cuda"})
GRAPHED = (
    "a CUDA graph is captured from hooked modules: its replays call no hooks, so nothing of them is "
    "captured. To observe them, run these modules without the graph"
)
DRAIN_S = 2.0
_SUBMITS_BETWEEN_SETTLEMENTS = 16


class Settled(Protocol):
    """As `capture.gpu.outcome.Settled`; `drop` is None or a `DeviceDrop`."""

    @property
    def key(self) -> object: ...
    @property
    def drop(self) -> str | None: ...
    @property
    def packets(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def error(self) -> str | None: ...


class Streamer(Protocol):
    """The part of `capture.gpu.streamer.DeviceStreamer` that is used here."""

    def prepare(self, preprocessor: Preprocessor) -> None: ...
    def submit(
        self,
        tensor: torch.Tensor,
        preprocessor: Preprocessor,
        make_meta: Callable[[Encoded], PacketMeta],
        *,
        key: str,
        timeout_s: float,
        real: torch.Tensor | None,
    ) -> str | None: ...
    def collect(self) -> Sequence[Settled]: ...
    @property
    def fill_ratio(self) -> float: ...
    def close(self, timeout_s: float) -> int: ...


StreamerFactory = Callable[[Writer, Slot, Sequence[torch.device], DeviceConfig], Streamer]


class Offload:
    """One per hooker. The streamer is never called with the writer's lock held.

    fill_ratio: how full the path to the bus is, 0..1, as of the last submission.
    """

    def __init__(
        self,
        writer: Writer,
        slot: Slot,
        config: DeviceConfig,
        make_streamer: StreamerFactory | None = None,
        notices: Notices | None = None,
        served: frozenset[str] = SERVED,
    ) -> None:
        self.fill_ratio = 0.0
        self._writer, self._slot, self._served = writer, slot, served
        self._config = config
        self._make_streamer = make_streamer or cuda_streamer
        self._streamer: Streamer | None = None
        self._unusable: Exception | None = None
        self._starting = threading.Lock()
        self._streams: dict[object, HookStream] = {}
        self._until_settlement = 0
        self._warned: set[str] = set()
        self._notices = notices or Notices()

    def serves(self, device: torch.device) -> bool:
        return device.type in self._served

    def prepare(self, streams: Iterable[HookStream], devices: Iterable[torch.device]) -> None:
        """Be ready for these devices before the first hook fires; seconds, where there are any.

        Raises what the start of the device path raises.
        """
        wanted = [device for device in devices if self.serves(device)]
        if not wanted:
            return
        streamer = self._start(wanted)
        for stream in streams:
            streamer.prepare(stream.kernel)

    def submit(
        self,
        stream: HookStream,
        tensor: torch.Tensor,
        make_header: Callable[[Encoded], PacketMeta],
        real: torch.Tensor | None = None,
    ) -> bool:
        """Put the tensor's copy on its device's queue. False: there was no room, and a lower rate helps.

        real: which of its rows are tokens, where the header's encoding is `padded+...`.

        Raises what the device path raises (see `DeviceStreamer.submit`).
        """
        began = time.perf_counter_ns()
        streamer = self._streamer or self._start([tensor.device])
        self._streams[stream.name] = stream
        drop = streamer.submit(
            tensor,
            stream.kernel,
            make_header,
            key=stream.name,
            timeout_s=self._writer.block_timeout_s,
            real=real,
        )
        with self._writer.lock:
            stream.calls.add()
            stream.latency.record(time.perf_counter_ns() - began)
        self._until_settlement -= 1
        if drop is not None or self._until_settlement <= 0:
            self._until_settlement = _SUBMITS_BETWEEN_SETTLEMENTS
            self.fill_ratio = streamer.fill_ratio
            self.settle()
        if drop is None:
            return True
        from asys_bench.capture.gpu.outcome import DeviceDrop  # its package is there by now

        if drop is not DeviceDrop.GRAPH_CAPTURE:
            return False
        self._notices.say(GRAPHED)
        return True

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in host memory; waits for its device."""
        kind = tensor.device.type
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("tensors on %s are copied synchronously: this stalls the host", kind)
        return tensor.detach().cpu()

    def settle(self) -> None:
        """Credit the hooks with what became of their packets."""
        if self._streamer is None:
            return
        for settled in self._streamer.collect():
            stream = self._streams.get(settled.key)
            if stream is None:
                continue
            with self._writer.lock:
                if settled.drop is None:
                    stream.captured.add(settled.packets)
                    stream.bytes.add(settled.nbytes)
                else:
                    stream.dropped.add(settled.packets)
            if settled.error is not None and not stream.off:
                stream.fail(RuntimeError(settled.error))

    def close(self) -> None:
        """Wait a little for what is under way, then stop. Idempotent; `submit` starts it anew."""
        streamer = self._streamer
        if streamer is None:
            return
        streamer.close(DRAIN_S)
        self.settle()
        self._streamer, self.fill_ratio = None, 0.0

    def _start(self, devices: Sequence[torch.device]) -> Streamer:
        with self._starting:
            if self._unusable is not None:
                raise self._unusable
            if self._streamer is None:
                try:
                    self._streamer = self._make_streamer(
                        self._writer, self._slot, devices, self._config
                    )
                except Exception as error:
                    self._unusable = error
                    raise
            return self._streamer


def cuda_streamer(
    writer: Writer, slot: Slot, devices: Sequence[torch.device], config: DeviceConfig
) -> Streamer:
    """The device path for CUDA. Raises RuntimeError: no memory on a device, or it is broken."""
    from asys_bench.capture.gpu.cuda_runtime import CudaRuntime
    from asys_bench.capture.gpu.streamer import DeviceStreamer

    return DeviceStreamer(
        CudaRuntime(), writer.producer, writer.lock, config, devices=devices, slot=slot
    )
