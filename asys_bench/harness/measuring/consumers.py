"""Consumers of a transport under test: forked processes (or threads) that verify every packet.

They are forked before the bus is built, while this process has one thread; each waits for the
bus's handle, subscribes, reads to the end, and leaves what it saw in memory shared with the parent,
so that a killed one still tells what it had seen.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.bus import BaseDataBus, BusClient, BusHandle, BusSubscription
from asys_bench.contracts.scenario import ScenarioError
from asys_bench.harness.measuring.payloads import PayloadPool
from asys_bench.harness.plugins import backend_plugin
from asys_bench.system.liveness import ProcessHandle
from asys_bench.system.process import yield_to_others

READY_S = 20.0
_CELLS = 16
_DELIVERED, _TORN, _REORDERED, _LAST_NS, _CPU_NS, _SAMPLES, _FAILED = range(7)


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One consumer process."""

    group: str
    member: str
    max_packets: int = 256
    linger_s: float = 0.02
    batch_delay_s: float = 0.0
    """Sleep after each batch: a slow consumer."""
    latency_from: int = -1
    """Record one-way latency of packets with at least this number; -1: never."""
    cpu: int | None = None
    """Run on this CPU only."""


class Tally:
    """What one consumer saw, in memory shared with its parent."""

    def __init__(self, most_packets: int) -> None:
        self._memory = mmap.mmap(-1, 8 * _CELLS + most_packets * 9 + 16)
        self._cells: npt.NDArray[np.int64] = np.frombuffer(self._memory, np.int64, _CELLS)
        self.latencies: npt.NDArray[np.int64] = np.frombuffer(
            self._memory, np.int64, most_packets, 8 * _CELLS
        )
        self.seen: npt.NDArray[np.uint8] = np.frombuffer(
            self._memory, np.uint8, most_packets, 8 * _CELLS + 8 * most_packets
        )
        """How often each packet number was acknowledged or in hand."""

    def get(self, cell: int) -> int:
        return int(self._cells[cell])

    def set(self, cell: int, value: int) -> None:
        self._cells[cell] = value

    @property
    def delivered(self) -> int:
        return self.get(_DELIVERED)

    @property
    def torn(self) -> int:
        return self.get(_TORN)

    @property
    def reordered(self) -> int:
        return self.get(_REORDERED)

    @property
    def last_ns(self) -> int:
        """CLOCK_MONOTONIC of the last packet verified; 0 before the first."""
        return self.get(_LAST_NS)

    @property
    def cpu_s(self) -> float:
        return self.get(_CPU_NS) / 1e9

    @property
    def failed(self) -> bool:
        return bool(self.get(_FAILED))

    def latencies_ns(self) -> npt.NDArray[np.int64]:
        """One-way latencies recorded so far."""
        return self.latencies[: self.get(_SAMPLES)].copy()


def consume(
    subscription: BusSubscription,
    spec: ConsumerSpec,
    pool: PayloadPool,
    tally: Tally,
    cpu_ns: Callable[[], int] = time.thread_time_ns,
) -> None:
    """Read, verify and acknowledge until the stream has ended."""
    last_seq: dict[int, int] = {}
    delivered = torn = reordered = samples = 0
    last_number = -1
    seen, latencies = tally.seen, tally.latencies
    first, most = spec.latency_from, len(seen)
    clock = time.monotonic_ns
    started_cpu = cpu_ns()
    while not subscription.ended:
        with subscription.pull_batch(spec.max_packets, spec.linger_s) as lease:
            for packet in lease:
                number = pool.number_of(packet)
                now = clock()
                if 0 <= number < most:
                    seen[number] += 1
                else:
                    torn += 1
                if packet.seq < last_seq.get(packet.shard, -1) or 0 <= number < last_number:
                    reordered += 1
                last_number = number if number >= 0 else last_number
                last_seq[packet.shard] = packet.seq
                delivered += 1
                if 0 <= first <= number < most:
                    latencies[samples] = now - packet.timestamp_ns
                    samples += 1
                tally.set(_LAST_NS, now)
            packet = None  # type: ignore[assignment]  # its view would keep the lease
        tally.set(_DELIVERED, delivered)
        tally.set(_TORN, torn)
        tally.set(_REORDERED, reordered)
        tally.set(_SAMPLES, samples)
        tally.set(_CPU_NS, cpu_ns() - started_cpu)
        if spec.batch_delay_s:
            time.sleep(spec.batch_delay_s)


class ForkedConsumer:
    """A consumer in a child process."""

    def __init__(self, spec: ConsumerSpec, pool: PayloadPool, most_packets: int) -> None:
        self.spec, self.tally = spec, Tally(most_packets)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            near.close()
            self._child(far, pool)
        far.close()
        self._control = near
        self._process = ProcessHandle(self.pid)
        self._reaped = False

    def attach(self, bus: BaseDataBus, handle: BusHandle | None) -> None:
        """Give it the bus and wait until it has subscribed.

        Raises:
            ScenarioError: it did not come up.
        """
        assert handle is not None
        self._control.settimeout(READY_S)
        message = json.dumps(handle.to_dict()).encode()
        socket.send_fds(self._control, [message], handle.fds)
        reply = self._control.recv(4096)
        if reply != b"ready":
            raise ScenarioError(f"consumer {self.spec.member} did not start: {reply.decode()}")

    def kill(self) -> None:
        """SIGKILL it and wait until the kernel confirms its death."""
        self._process.kill()
        self.join(5.0)

    def stop(self) -> None:
        """SIGSTOP: it holds what it has and answers nothing."""
        self._process.kill(signal.SIGSTOP)

    def join(self, timeout_s: float) -> bool:
        """Whether it ended in time."""
        if not self._reaped and self._process.wait(timeout_s):
            self._process.reap()
            self._reaped = True
        return self._reaped

    def close(self) -> None:
        """Kill it if it is still there, and let go of everything."""
        if not self._reaped:
            self.kill()
        self._process.close()
        self._control.close()

    def _child(self, control: socket.socket, pool: PayloadPool) -> None:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if self.spec.cpu is not None:
                os.sched_setaffinity(0, {self.spec.cpu})
            yield_to_others(None)  # as a worker does
            data, fds, _, _ = socket.recv_fds(control, 1 << 20, 64)
            if data:
                handle = BusHandle.from_dict(json.loads(data), fds)
                client: BusClient = backend_plugin(handle.backend).attach(handle)
                subscription = client.subscribe(self.spec.group, self.spec.member)
                control.send(b"ready")
                consume(subscription, self.spec, pool, self.tally, time.process_time_ns)
                subscription.close()
                client.close()
                code = 0
        except BaseException:  # noqa: BLE001 - a child must never return into its parent's code
            self.tally.set(_FAILED, 1)
            traceback.print_exc()
            with contextlib.suppress(OSError):
                control.send(traceback.format_exc()[-2000:].encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class ThreadConsumer:
    """A consumer in a thread, for backends that live in one process (instrument floors)."""

    def __init__(self, spec: ConsumerSpec, pool: PayloadPool, most_packets: int) -> None:
        self.spec, self.tally = spec, Tally(most_packets)
        self._pool = pool
        self._thread: threading.Thread | None = None

    def attach(self, bus: BaseDataBus, handle: BusHandle | None) -> None:
        subscription = bus.subscribe(self.spec.group, self.spec.member)
        self._thread = threading.Thread(target=self._run, args=(subscription,), daemon=True)
        self._thread.start()

    def _run(self, subscription: BusSubscription) -> None:
        try:
            consume(subscription, self.spec, self._pool, self.tally)
        except Exception:  # noqa: BLE001 - reported through the tally
            traceback.print_exc()
            self.tally.set(_FAILED, 1)

    def join(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def kill(self) -> None:
        raise ScenarioError("this backend's consumers are threads; threads cannot be killed")

    stop: Callable[[], None] = kill  # type: ignore[assignment]
    pid = 0

    def close(self) -> None:
        return None


Consumer: Any = ForkedConsumer | ThreadConsumer
