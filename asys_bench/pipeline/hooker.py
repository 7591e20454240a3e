"""ActivationHooker: copies activations out of a model onto the bus, and nothing else.

- It copies inside the hook and keeps no reference: hosts change tensors in place.
- Nothing of ours raises in the host. A hook that fails is switched off, counted and logged once.
- Outputs are returned untouched, no autograd graph is extended, and no random generator of the host
  is drawn from, so training is bit-identical with and without it.
- `detach` removes every handle; the model is as it was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from asys_bench.contracts.bus import BaseDataBus, BusProducer
from asys_bench.contracts.packet import DTYPE_CODE, Kind, PacketMeta
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.contracts.stats import Slot
from asys_bench.pipeline.backpressure import AdaptiveSampler
from asys_bench.pipeline.clock import StepClock
from asys_bench.pipeline.hookpoints import HookPoint, select_tensor

log = logging.getLogger(__name__)

FILL_CHECK_EVERY = 16
"""Captures between two looks at the bus's fill ratio."""


class _Stream:
    """The state of one hook point."""

    def __init__(
        self,
        point: HookPoint,
        bus: BaseDataBus,
        slot: Slot,
        kernel: Preprocessor,
        on_full: str,
        block_timeout_s: float,
        seed: int,
    ) -> None:
        self.point = point
        self.kernel = kernel
        self.hook_id = bus.intern(point.name)
        self.encoding_id = bus.intern(kernel.encoding)
        self.sampler = AdaptiveSampler(point.config.sampling, seed)
        self.adapts = on_full == "sample"
        self.block_timeout_s = block_timeout_s if on_full == "block" else 0.0
        self.phase = {"any": None, "train": True, "eval": False}[point.config.phase]
        self.select = point.config.select
        self.failed = False
        self.captures = 0
        self.step_seen = -1
        self.call_index = 0
        hook = point.name
        self.calls = slot.counter("hook_calls", hook=hook)
        self.captured = slot.counter("hook_captured", hook=hook)
        self.sampled_out = slot.counter("hook_sampled_out", hook=hook)
        self.dropped = slot.counter("hook_dropped", hook=hook)
        self.skipped = slot.counter("hook_skipped", hook=hook)
        self.failures = slot.counter("hook_failed", hook=hook)
        self.bytes = slot.counter("hook_bytes", hook=hook)
        self.rate = slot.gauge("hook_sampling_rate", hook=hook)
        self.latency = slot.histogram("hook_latency_ns", hook=hook)
        self.rate.set(self.sampler.rate)


class ActivationHooker:
    """Forward hooks on every hook point, pushing to shard 0 of `bus`.

    kernels, seeds: one preprocessor and one sampler seed per point, in order.
    """

    def __init__(
        self,
        bus: BaseDataBus,
        points: Sequence[HookPoint],
        kernels: Sequence[Preprocessor],
        slot: Slot,
        clock: StepClock,
        *,
        on_full: str = "sample",
        block_timeout_s: float = 1.0,
        seeds: Sequence[int],
    ) -> None:
        self._bus = bus
        self._producer: BusProducer = bus.producer(0)
        self._clock = clock
        self._lock = threading.Lock()  # one writer per shard, whatever thread the host calls from
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._streams = [
            _Stream(point, bus, slot, kernel, on_full, block_timeout_s, seed)
            for point, kernel, seed in zip(points, kernels, seeds, strict=True)
        ]

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self) -> None:
        """Register the hooks; a second call changes nothing."""
        if self._handles:
            return
        for stream in self._streams:
            module = stream.point.module
            kind = stream.point.kind
            if kind is Kind.INPUT:
                self._handles.append(module.register_forward_pre_hook(self._input_hook(stream)))
            elif kind is Kind.GRADIENT:
                self._handles.append(module.register_forward_hook(self._gradient_hook(stream)))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(stream)))

    def detach(self) -> None:
        """Remove every hook. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _output_hook(self, stream: _Stream) -> Callable[[torch.nn.Module, Any, Any], None]:
        capture = self._capture

        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            if not stream.failed:
                capture(stream, module.training, output)

        return hook

    def _input_hook(self, stream: _Stream) -> Callable[[torch.nn.Module, Any], None]:
        capture = self._capture

        def hook(module: torch.nn.Module, args: Any) -> None:
            if not stream.failed:
                capture(stream, module.training, args)

        return hook

    def _gradient_hook(self, stream: _Stream) -> Callable[[torch.nn.Module, Any, Any], None]:
        """Capture d(loss)/d(output): a tensor hook on each output that takes part in backward."""
        capture = self._capture

        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            if stream.failed or not torch.is_grad_enabled():
                return
            training = module.training

            def on_gradient(gradient: torch.Tensor) -> None:
                if not stream.failed and self._handles:
                    capture(stream, training, gradient, selected=True)

            try:
                tensor = select_tensor(output, stream.select)
                if tensor is not None and tensor.requires_grad:
                    tensor.register_hook(on_gradient)  # type: ignore[no-untyped-call]
            except Exception as error:  # noqa: BLE001 - fail-open
                self._fail(stream, error)

        return hook

    def _capture(self, stream: _Stream, training: bool, value: Any, selected: bool = False) -> None:
        started = time.perf_counter_ns()
        try:
            stream.calls.add()
            if stream.phase is not None and stream.phase is not training:
                stream.skipped.add()
                return
            step = self._clock.host_step
            if step != stream.step_seen:
                stream.step_seen, stream.call_index = step, 0
            else:
                stream.call_index += 1
            sampler = stream.sampler
            if not sampler.take():
                stream.sampled_out.add()
                if stream.adapts:
                    self._follow_bus(stream, started)
                return
            tensor = value if selected else select_tensor(value, stream.select)
            if tensor is None:
                stream.skipped.add()
                return
            tensor = tensor.detach()
            if not tensor.is_cpu:
                tensor = _to_cpu(tensor)
            with self._lock:
                accepted = self._push(stream, tensor, step, started)
            if accepted:
                stream.captured.add()
                stream.bytes.add(tensor.numel() * tensor.element_size())
            else:
                stream.dropped.add()
            if stream.adapts:
                if accepted:
                    self._follow_bus(stream, started)
                else:
                    sampler.congested(started)
                    stream.rate.set(sampler.rate)
            stream.latency.record(time.perf_counter_ns() - started)
        except Exception as error:  # noqa: BLE001 - fail-open: nothing of ours may reach the host
            self._fail(stream, error)

    def _push(self, stream: _Stream, tensor: torch.Tensor, step: int, now_ns: int) -> bool:
        kernel, producer = stream.kernel, self._producer
        meta = PacketMeta(
            stream.hook_id,
            stream.point.kind,
            DTYPE_CODE[tensor.dtype],
            tuple(tensor.shape),
            step,
            now_ns,
            self._clock.weights_version,
            stream.encoding_id,
            sampling_rate=stream.sampler.rate,
            call_index=stream.call_index,
        )
        if kernel.is_identity and (stream.block_timeout_s or tensor.is_contiguous()):
            payload = tensor if tensor.is_contiguous() else tensor.contiguous()
            if stream.block_timeout_s:
                return producer.push(meta, payload, stream.block_timeout_s)
            return producer.try_push(meta, payload)
        if stream.block_timeout_s:
            encoded_payload = memoryview(bytearray(kernel.encoded_bytes(tensor)))
            encoded = kernel.encode(tensor, encoded_payload)
            meta = meta._replace(
                dtype=DTYPE_CODE[encoded.dtype], shape=encoded.shape, params=encoded.params
            )
            return producer.push(meta, encoded_payload[: encoded.nbytes], stream.block_timeout_s)
        slot = producer.reserve(kernel.encoded_bytes(tensor))
        if slot is None:
            return False
        try:
            encoded = kernel.encode(tensor, slot.view)
        except BaseException:
            slot.abort()
            raise
        meta = meta._replace(
            dtype=DTYPE_CODE[encoded.dtype], shape=encoded.shape, params=encoded.params
        )
        return slot.commit(meta, encoded.nbytes)

    def _follow_bus(self, stream: _Stream, now_ns: int) -> None:
        stream.captures += 1
        if stream.captures % FILL_CHECK_EVERY:
            return
        sampler = stream.sampler
        before = sampler.rate
        sampler.observe_fill(self._bus.fill_ratio(), now_ns)
        if sampler.rate != before:
            stream.rate.set(sampler.rate)

    def _fail(self, stream: _Stream, error: Exception) -> None:
        stream.failed = True
        try:
            stream.failures.add()
            log.warning(
                "hook %s switched itself off after %s: %s (the host goes on unobserved there)",
                stream.point.name,
                type(error).__name__,
                error,
            )
        except Exception:  # noqa: BLE001 - a closed stats page or a broken logging handler, no more
            return


_warned_devices: set[str] = set()


def _to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    device = tensor.device.type
    if device not in _warned_devices:
        _warned_devices.add(device)
        log.warning("tensors on %s are copied synchronously: this stalls the host", device)
    return tensor.cpu()
