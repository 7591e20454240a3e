"""Every contender of the bus comparison, through public interfaces only; every byte is read.

A consumer reads as a worker does: what its transport hands over, in batches where it has them, summed
in place. `serve.py` runs the two sides; a contender whose library is not installed raises ImportError
from `open`.
"""

from __future__ import annotations

import base64
import ctypes
import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

from contender import BATCH, Contender, total
from ours import Ours


class MpQueue(Contender):
    """multiprocessing.Queue: what everybody has."""

    inherited = True

    def open(self):
        self.queue = multiprocessing.get_context("fork").Queue(256)
        return {}, ()

    def payloads(self, rows):
        return [row.tobytes() for row in rows]

    def produce(self, payloads, packets):
        put, count = self.queue.put, len(payloads)
        for index in range(packets):
            put(payloads[index % count])

    def consume(self, packets):
        get = self.queue.get
        for _ in range(packets):
            total(get())
        return packets


class FasterFifo(MpQueue):
    """faster-fifo in batches, without pickling: the consumer sums the views that it hands out."""

    def open(self):
        from faster_fifo import Queue

        self.queue = Queue(self.capacity_bytes, loads=_same, dumps=_same)
        self.batch = max(1, min(BATCH, self.capacity_bytes // 4 // self.nbytes))
        return {}, ()

    def produce(self, payloads, packets):
        put_many, count, sent = self.queue.put_many, len(payloads), 0
        while sent < packets:
            many = min(self.batch, packets - sent, count - sent % count)
            put_many(payloads[sent % count : sent % count + many], timeout=60.0)
            sent += many

    def consume(self, packets):
        from queue import Empty

        get_many, got = self.queue.get_many, 0
        while got < packets:
            try:
                messages = get_many(timeout=1.0, max_messages_to_get=self.batch)
            except Empty:
                continue
            for message in messages:
                total(message)
            got += len(messages)
        return got


def _same(value: Any) -> Any:
    return value


class Zmq(Contender):
    """pyzmq PUSH/PULL over ipc, without copies where it can."""

    def open(self):
        import zmq

        self.socket = zmq.Context().socket(zmq.PUSH)
        self.socket.set_hwm(256)
        address = f"ipc://@asys-bench-{os.getpid()}"
        self.socket.bind(address)
        return {"address": address}, ()

    def produce(self, payloads, packets):
        count, send = len(payloads), self.socket.send
        copy = self.nbytes < 65536
        for index in range(packets):
            send(payloads[index % count], copy=copy)

    def attach(self, data, fds, group):
        import zmq

        self.socket = zmq.Context().socket(zmq.PULL)
        self.socket.set_hwm(256)
        self.socket.connect(data["address"])

    def consume(self, packets):
        receive = self.socket.recv
        copy = self.nbytes < 65536
        for _ in range(packets):
            message = receive(copy=copy)
            total(message if copy else message.buffer)
        return packets


class Iceoryx2(Contender):
    """iceoryx2 publish-subscribe with loaned slices, blocking when the subscriber is full.

    queue_bytes: of what waits for the subscriber, within 2 to 64 samples. Its pool hands out the slot that
        came back last: a short queue stays in a cache also where the subscriber is the slower side.
    """

    def __init__(self, nbytes: int, queue_bytes: int) -> None:
        super().__init__(nbytes)
        self.queue = min(BATCH, max(2, queue_bytes // nbytes))

    def _service(self, name: str):
        import iceoryx2 as i2

        i2.set_log_level(i2.LogLevel.Error)
        self.node = i2.NodeBuilder.new().create(i2.ServiceType.Ipc)
        return (
            self.node.service_builder(i2.ServiceName.new(name))
            .publish_subscribe(i2.Slice[ctypes.c_uint8])
            .payload_alignment(i2.Alignment.new(64))
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(self.queue)
            .open_or_create()
        )

    def open(self):
        import iceoryx2 as i2

        name = f"asys-bench-{os.getpid()}"
        self.publisher = (
            self._service(name)
            .publisher_builder()
            .initial_max_slice_len(self.nbytes)
            .backpressure_strategy(i2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        return {"name": name}, ()

    def produce(self, payloads, packets):
        count, nbytes = len(payloads), self.nbytes
        loan = self.publisher.loan_slice_uninit
        pointers = [row.ctypes.data for row in payloads]
        for index in range(packets):
            sample = loan(nbytes)
            ctypes.memmove(sample.payload().as_ptr(), pointers[index % count], nbytes)
            sample.assume_init().send()

    def attach(self, data, fds, group):
        self.subscriber = (
            self._service(data["name"]).subscriber_builder().buffer_size(self.queue).create()
        )

    def consume(self, packets):
        receive, got = self.subscriber.receive, 0
        while got < packets:
            sample = receive()
            if sample is None:
                continue
            view = sample.payload().as_memory_view()
            if view.nbytes != self.nbytes:  # slices of larger elements count bytes (0.10)
                raise ValueError(f"a view of {view.nbytes} bytes, {self.nbytes} were sent")
            total(view)
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
        self.provider = shm.ShmProvider.default_backend(self.capacity_bytes)
        self.policy = shm.BlockOn(shm.GarbageCollect())
        self.publisher = self.session.declare_publisher(
            self.KEY, congestion_control=zenoh.CongestionControl.BLOCK
        )
        return {"endpoint": endpoint}, ()

    def payloads(self, rows):
        return [row.tobytes() for row in rows]

    def produce(self, payloads, packets):
        count = len(payloads)
        for index in range(packets):
            buffer = self.provider.alloc(self.nbytes, policy=self.policy)
            buffer[:] = payloads[index % count]
            self.publisher.put(buffer)

    def attach(self, data, fds, group):
        self.session = self._session(**{"connect/endpoints": json.dumps([data["endpoint"]])})
        self.subscriber = self.session.declare_subscriber(self.KEY)
        time.sleep(0.5)

    def consume(self, packets):
        for _ in range(packets):
            total(self.subscriber.recv().payload.to_bytes())
        return packets

    def close(self):
        self.session.close()


class VllmRing(Contender):
    """vLLM's broadcast ring: the chunks themselves, without the pickling of its `enqueue`."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.joined = False

    def open(self):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

        chunks = min(4096, self.capacity_bytes // self.nbytes)
        self.queue = MessageQueue(1, 1, max_chunk_bytes=self.nbytes, max_chunks=chunks)
        return {"handle": base64.b64encode(pickle.dumps(self.queue.export_handle())).decode()}, ()

    def payloads(self, rows):
        return [memoryview(row).cast("B") for row in rows]

    def produce(self, payloads, packets):
        self._join()
        acquire, count = self.queue.acquire_write, len(payloads)
        for index in range(packets):
            with acquire() as chunk:
                chunk[:] = payloads[index % count]

    def attach(self, data, fds, group):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

        handle = pickle.loads(base64.b64decode(data["handle"]))  # noqa: S301 - our own producer's
        self.queue = MessageQueue.create_from_handle(handle, 0)

    def consume(self, packets):
        self._join()
        acquire = self.queue.acquire_read
        for _ in range(packets):
            with acquire() as chunk:
                total(chunk)
        return packets

    def _join(self) -> None:
        """Both sides at once: it waits for the other."""
        if not self.joined:
            self.queue.wait_until_ready()
            self.joined = True


CONTENDERS: dict[str, Callable[[int], Contender]] = {
    "cpp_spmc": lambda n: Ours(n, "cpp_spmc"),
    "cpp_spmc one a pull": lambda n: Ours(n, "cpp_spmc", pull=1),
    "cpp_spmc polled": lambda n: Ours(n, "cpp_spmc", poll_us=500),
    "cpp_spmc batch 64": lambda n: Ours(n, "cpp_spmc", 64),
    "cpp_spmc 3 groups": lambda n: Ours(n, "cpp_spmc", 1, 3),
    "numba_ring": lambda n: Ours(n, "numba_ring"),
    "numba_ring batch 64": lambda n: Ours(n, "numba_ring", 64),
    "mp_queue": lambda n: Ours(n, "mp_queue"),
    "mp.Queue": MpQueue,
    "faster-fifo": FasterFifo,
    "pyzmq": Zmq,
    "iceoryx2": lambda n: Iceoryx2(n, 4 << 20),
    "iceoryx2 deep": lambda n: Iceoryx2(n, 64 << 20),
    "zenoh shm": ZenohShm,
    "vLLM ring": VllmRing,
}
