"""Every contender of the bus benchmark: one producer process, one consumer process, every byte read.

    python suites/peers/transports.py NAME BYTES PACKETS      prints GB/s and packets/s as JSON

The producer pushes rows of a random matrix larger than the cache, so each payload is fresh; the
consumer sums every 64-bit word with numpy, checks the count, and the clock stops when it says so.
Ours go through the public contract only. A peer that is not installed says so and exits 3.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

CAPACITY_BYTES = 64 << 20
READY, DONE = "ready", "done"


def sources(nbytes: int) -> np.ndarray:
    """uint64[rows, words] of random payloads, 8 to 64 MiB in all, at least two."""
    rows = max(2, min(64 << 20, max(8 << 20, 8 * nbytes)) // nbytes)
    return np.random.default_rng(1).integers(0, 2**63, (rows, nbytes // 8), dtype=np.uint64)


def total(buffer: Any) -> int:
    """Read every byte."""
    return int(np.frombuffer(buffer, np.uint64).sum())


class Contender(ABC):
    """One transport; `open` runs in the producer, `consume` in the consumer process."""

    def __init__(self, nbytes: int, packets: int) -> None:
        self.nbytes, self.packets = nbytes, packets

    @abstractmethod
    def open(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Create the transport; returns what the consumer needs: JSON data and descriptors."""

    @abstractmethod
    def produce(self, rows: np.ndarray) -> None:
        """Send `packets` packets."""

    @abstractmethod
    def attach(self, data: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Consumer side of `open`."""

    @abstractmethod
    def consume(self) -> int:
        """Receive `packets` packets, reading all of them; returns how many came."""

    def close(self) -> None:
        """Producer side."""


class Ours(Contender):
    """A registered bus through `contracts.bus`; `batch` packets per push."""

    def __init__(self, nbytes: int, packets: int, backend: str, batch: int = 1, groups: int = 1):
        super().__init__(nbytes, packets)
        self.backend, self.batch, self.groups = backend, batch, groups

    def open(self):
        from asys_bench.contracts.bus import BusPlugin, BusRequest, GroupSpec
        from asys_bench.registry import registry

        plugin = registry("backend").get(self.backend, BusPlugin)
        groups = tuple(GroupSpec(f"g{index}") for index in range(self.groups))
        capacity = max(CAPACITY_BYTES, 8 * self.nbytes)
        self.bus = plugin.build(
            BusRequest(groups=groups, capacity_bytes=capacity, options=plugin.options())
        )
        handle = self.bus.handle()
        return handle.to_dict(), handle.fds

    def produce(self, rows):
        from asys_bench.contracts.packet import PacketMeta

        producer = self.bus.producer(0)
        meta = PacketMeta(0, 0, 8, (self.nbytes // 8,))
        if self.batch == 1:
            each, count = list(rows), len(rows)
            try_push, push = producer.try_push, producer.push
            for index in range(self.packets):
                row = each[index % count]
                if producer_is_full := not try_push(meta, row):
                    while producer_is_full:
                        producer_is_full = not push(meta, row, 1.0)
            return
        sent, first = 0, 0
        while sent < self.packets:
            many = min(self.batch, self.packets - sent, len(rows) - first)
            accepted = producer.try_push_many(meta, rows[first : first + many])
            sent, first = sent + accepted, (first + accepted) % len(rows)
            if accepted < many and producer.push(meta, rows[first], 1.0):  # waits for room
                sent, first = sent + 1, (first + 1) % len(rows)

    def attach(self, data, fds):
        from asys_bench.contracts.bus import BusHandle, BusPlugin
        from asys_bench.registry import registry

        plugin = registry("backend").get(data["backend"], BusPlugin)
        self.client = plugin.attach(BusHandle.from_dict(data, fds))
        self.group = f"g{os.environ.get('GROUP', '0')}"
        self.subscription = self.client.subscribe(self.group, "consumer")

    def consume(self):
        got = 0
        while got < self.packets:
            with self.subscription.pull_batch(64, 1.0) as lease:
                for packet in lease:  # as every sink reads one
                    total(packet.payload)
                got += len(lease)
                packet = None  # its view would keep the lease
        return got

    def close(self):
        self.bus.close()


class MpQueue(Contender):
    """multiprocessing.Queue: what everybody has."""

    def open(self):
        self.queue = multiprocessing.get_context("fork").Queue(256)
        return {}, ()

    def produce(self, rows):
        each = [row.tobytes() for row in rows]
        put, count = self.queue.put, len(each)
        for index in range(self.packets):
            put(each[index % count])

    def attach(self, data, fds):
        pass

    def consume(self):
        get = self.queue.get
        for _ in range(self.packets):
            total(get())
        return self.packets


class Zmq(Contender):
    """pyzmq PUSH/PULL over ipc, without copies where it can."""

    def open(self):
        import zmq

        self.socket = zmq.Context().socket(zmq.PUSH)
        self.socket.set_hwm(256)
        address = f"ipc://@asys-bench-{os.getpid()}"
        self.socket.bind(address)
        return {"address": address}, ()

    def produce(self, rows):
        each, count, send = list(rows), len(rows), self.socket.send
        copy = self.nbytes < 65536
        for index in range(self.packets):
            send(each[index % count], copy=copy)

    def attach(self, data, fds):
        import zmq

        self.socket = zmq.Context().socket(zmq.PULL)
        self.socket.set_hwm(256)
        self.socket.connect(data["address"])

    def consume(self):
        receive = self.socket.recv
        copy = self.nbytes < 65536
        for _ in range(self.packets):
            message = receive(copy=copy)
            total(message if copy else message.buffer)
        return self.packets


class Iceoryx2(Contender):
    """iceoryx2 publish-subscribe with loaned slices, blocking when the subscriber is full."""

    def _service(self, name: str):
        import iceoryx2 as i2

        i2.set_log_level(i2.LogLevel.Error)
        self.node = i2.NodeBuilder.new().create(i2.ServiceType.Ipc)
        return (
            self.node.service_builder(i2.ServiceName.new(name))
            .publish_subscribe(i2.Slice[ctypes.c_uint64])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(64)
            .open_or_create()
        )

    def open(self):
        import iceoryx2 as i2

        name = f"asys-bench-{os.getpid()}"
        self.publisher = (
            self._service(name)
            .publisher_builder()
            .initial_max_slice_len(self.nbytes // 8)
            .backpressure_strategy(i2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        return {"name": name}, ()

    def produce(self, rows):
        each, count, words = list(rows), len(rows), self.nbytes // 8
        loan = self.publisher.loan_slice_uninit
        pointers = [row.ctypes.data for row in each]
        for index in range(self.packets):
            sample = loan(words)
            ctypes.memmove(sample.payload().as_ptr(), pointers[index % count], self.nbytes)
            sample.assume_init().send()

    def attach(self, data, fds):
        self.subscriber = self._service(data["name"]).subscriber_builder().buffer_size(64).create()

    def consume(self):
        receive, got, words = self.subscriber.receive, 0, self.nbytes // 8
        kind = ctypes.c_uint64 * words
        while got < self.packets:
            sample = receive()
            if sample is None:
                time.sleep(0)
                continue
            pointer = ctypes.cast(sample.payload().as_ptr(), ctypes.POINTER(kind))
            total(pointer.contents)
            sample.delete()
            got += 1
        return got


class ZenohShm(Contender):
    """zenoh peer to peer over a Unix socket with shared-memory buffers, reliable and blocking."""

    KEY = "asys/bench"

    def _session(self, **settings: str):
        import zenoh

        config = zenoh.Config()
        for key, value in {
            "scouting/multicast/enabled": "false",
            "transport/shared_memory/enabled": "true",
            **settings,
        }.items():
            config.insert_json5(key, value)
        return zenoh.open(config)

    def open(self):
        import zenoh
        from zenoh import shm

        endpoint = f"unixsock-stream//tmp/asys-bench-{os.getpid()}.sock"
        self.session = self._session(**{"listen/endpoints": json.dumps([endpoint])})
        self.provider = shm.ShmProvider.default_backend(max(CAPACITY_BYTES, 8 * self.nbytes))
        self.policy = shm.BlockOn(shm.GarbageCollect())
        self.publisher = self.session.declare_publisher(
            self.KEY, congestion_control=zenoh.CongestionControl.BLOCK
        )
        return {"endpoint": endpoint}, ()

    def produce(self, rows):
        each, count = [row.view(np.uint8) for row in rows], len(rows)
        for index in range(self.packets):
            buffer = self.provider.alloc(self.nbytes, policy=self.policy)
            buffer[:] = each[index % count].tobytes()
            self.publisher.put(buffer)

    def attach(self, data, fds):
        self.session = self._session(**{"connect/endpoints": json.dumps([data["endpoint"]])})
        self.subscriber = self.session.declare_subscriber(self.KEY)
        time.sleep(0.5)

    def consume(self):
        for _ in range(self.packets):
            total(self.subscriber.recv().payload.to_bytes())
        return self.packets

    def close(self):
        self.session.close()


CONTENDERS: dict[str, Any] = {
    "cpp_spmc": lambda n, p: Ours(n, p, "cpp_spmc"),
    "cpp_spmc batch 64": lambda n, p: Ours(n, p, "cpp_spmc", 64),
    "cpp_spmc 3 groups": lambda n, p: Ours(n, p, "cpp_spmc", 1, 3),
    "numba_ring": lambda n, p: Ours(n, p, "numba_ring"),
    "numba_ring batch 64": lambda n, p: Ours(n, p, "numba_ring", 64),
    "mp_queue": lambda n, p: Ours(n, p, "mp_queue"),
    "mp.Queue": MpQueue,
    "pyzmq": Zmq,
    "iceoryx2": Iceoryx2,
    "zenoh shm": ZenohShm,
}


def measure(name: str, nbytes: int, packets: int) -> dict[str, float]:
    """One run of one contender in two (or 1 + groups) processes."""
    contender = CONTENDERS[name](nbytes, packets)
    data, fds = contender.open()
    rows = sources(nbytes)
    consumers = []
    for group in range(getattr(contender, "groups", 1)):
        if isinstance(contender, MpQueue):  # its pipe is inherited, so this one forks
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                contender.consume()
                os.write(write, b"done\n")
                os._exit(0)
            os.close(write)
            consumers.append((pid, os.fdopen(read)))
            continue
        process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--consume",
                name,
                str(nbytes),
                str(packets),
                json.dumps(data),
            ]
            + [str(fd) for fd in fds],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GROUP": str(group)},
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() != READY:
            raise SystemExit(f"{name}: its consumer did not start")
        consumers.append((process, process.stdout))
    start = time.perf_counter()
    contender.produce(rows)
    for _, output in consumers:
        if output.readline().strip() != DONE:
            raise SystemExit(f"{name}: its consumer failed")
    seconds = time.perf_counter() - start
    for process, output in consumers:
        output.close()
        if isinstance(process, int):
            os.waitpid(process, 0)
        else:
            process.wait()
    contender.close()
    return {"gbps": nbytes * packets / seconds / 1e9, "packets_per_s": packets / seconds}


def main() -> None:
    if sys.argv[1] == "--consume":
        name, nbytes, packets, data, *fds = sys.argv[2:]
        contender = CONTENDERS[name](int(nbytes), int(packets))
        contender.attach(json.loads(data), tuple(map(int, fds)))
        print(READY, flush=True)
        if contender.consume() == int(packets):
            print(DONE, flush=True)
        return
    name, nbytes, packets = sys.argv[1:]
    try:
        print(json.dumps(measure(name, int(nbytes), int(packets))))
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))


if __name__ == "__main__":
    main()
