"""Forwarder -> receiver's ring over loopback, against bare ZeroMQ of the same kind and batch, in turn.

    python -P tests/stress/network_throughput.py [ROUNDS [MIB]]

Each round measures every case once, in an order of its own, each in fresh processes: `bare` (a DEALER and a
ROUTER, 4 MiB a message, four messages under way, the receiver copies into memory), `ours` (a forwarder that
takes packets from a ring that was filled before, with as much under way, a receiver that pushes onto its
ring, a process that only releases them) and `ring` (a push onto a local ring and such a process), packets
of 64 KiB and 1 MiB, with CURVE and without. Printed are GB/s, CPU seconds per GB of all processes together,
and ratios within rounds.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zmq

from asys_bench.cluster.forwarder import ForwarderWorker
from asys_bench.cluster.keys import make_keys, read_key
from asys_bench.cluster.options import ForwarderOptions, ReceiverOptions
from asys_bench.cluster.receiver import ReceiverHost
from asys_bench.contracts.bus import (
    BaseDataBus,
    BusHandle,
    BusPlugin,
    BusRequest,
    Delivery,
    GroupSpec,
)
from asys_bench.contracts.host import Fed, Feed
from asys_bench.contracts.packet import PacketMeta
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.registry import registry
from asys_bench.workers.shard_bus import interned_names

CASES = [
    (kind, size, curve)
    for size in (64 << 10, 1 << 20)
    for kind, curve in (
        ("bare", False),
        ("ours", False),
        ("bare", True),
        ("ours", True),
        ("ring", False),
    )
]
MESSAGE, IN_FLIGHT = 4 << 20, 4
RING_MIB = 64
CONFIG = {
    "host": {"kind": "synthetic"},
    "hooks": [{"match": "*"}],
    "sinks": {"remote": {"kind": "forwarder", "options": {"to": "tcp://127.0.0.1:1"}}},
}


def make_bus(group: str, names: tuple[str, ...], mib: int, shards: int = 1) -> BaseDataBus:
    plugin = registry("backend").get("cpp_spmc", BusPlugin)
    return plugin.build(
        BusRequest(
            groups=(GroupSpec(group, Delivery.AT_LEAST_ONCE),), shards=shards, capacity_packets=1 << 15,
            capacity_bytes=mib << 20, names=names, options=plugin.options(),
        )
    )  # fmt: skip


def cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (
            resource.getrusage(resource.RUSAGE_SELF),
            resource.getrusage(resource.RUSAGE_CHILDREN),
        )
    )


def release_only(bus: BaseDataBus, group: str, stop: Any) -> Callable[[], float]:
    """A forked process that takes packets and lets them go. Call what this returns once the bus has ended or
    `stop` is set: CPU seconds before its first packet."""
    began = multiprocessing.Value("d", 0.0)
    handle = bus.handle()
    pid = os.fork()
    if pid:
        return lambda: float(began.value) if os.waitpid(pid, 0) else 0.0
    try:
        client = (
            registry("backend")
            .get("cpp_spmc", BusPlugin)
            .attach(BusHandle.from_dict(handle.to_dict(), handle.fds))
        )
        reader = client.subscribe(group, "reader")
        began.value = cpu_s()
        while not reader.ended and not stop.is_set():
            with reader.pull_batch(256, 0.05) as lease:
                len(lease)
    finally:
        os._exit(0)


# Bare ZeroMQ.


def bare_receiver(pipe: Any, keys: str | None, messages: int, size: int) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    if keys is not None:
        router.curve_server = True
        router.curve_publickey = read_key(Path(keys) / "receiver.public").encode()
        router.curve_secretkey = read_key(Path(keys) / "receiver.secret").encode()
    port = router.bind_to_random_port("tcp://127.0.0.1")
    memory = memoryview(bytearray(RING_MIB << 20))
    memory[::4096] = bytes(len(memory[::4096]))
    pipe.send(port)
    before, at = cpu_s(), 0
    for _ in range(messages):
        peer, message = router.recv_multipart(copy=False)
        data = message.buffer
        for start in range(0, data.nbytes, size):
            if at + size > memory.nbytes:
                at = 0
            memory[at : at + size] = data[start : start + size]
            at += size
        router.send_multipart((peer.bytes, b"a"))
    pipe.send(cpu_s() - before)
    pipe.recv()
    context.destroy(linger=0)


def bare(size: int, keys: str | None, mib: int) -> tuple[float, float]:
    messages = (mib << 20) // MESSAGE
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=bare_receiver, args=(there, keys, messages, size)
    )
    process.start()
    port = here.recv()
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    if keys is not None:
        dealer.curve_publickey = read_key(Path(keys) / "client.public").encode()
        dealer.curve_secretkey = read_key(Path(keys) / "client.secret").encode()
        dealer.curve_serverkey = read_key(Path(keys) / "receiver.public").encode()
    dealer.connect(f"tcp://127.0.0.1:{port}")
    source = memoryview(bytearray(mib << 20))
    source[::4096] = bytes(len(source[::4096]))
    time.sleep(0.5)
    before, started = cpu_s(), time.perf_counter()
    answered = 0
    for number in range(messages):
        if number - answered >= IN_FLIGHT:
            dealer.recv()
            answered += 1
        dealer.send(source[number * MESSAGE : (number + 1) * MESSAGE], copy=False)
    while answered < messages:
        dealer.recv()
        answered += 1
    took, used = time.perf_counter() - started, cpu_s() - before
    used += here.recv()
    here.send(None)
    process.join()
    context.destroy(linger=0)
    return took, used


# Ours.


class Clock:
    should_stop = False
    steps_made = 0

    def __init__(self, run_dir: Path, stop: Any) -> None:
        self.run_dir, self._stop = run_dir, stop
        self.page = StatsPage.create(["host"])

    def feed(self, feed: Feed) -> Fed:
        self.bus = make_bus(
            "sinks", (*(one.name for one in feed.streams), *feed.names), RING_MIB, feed.shards
        )
        self.release = release_only(self.bus, "sinks", self._stop)
        self.before = cpu_s()
        return Fed(self.bus, RING_MIB << 20, 1 << 15)

    def metrics(self) -> Any:
        return self.page.slot("host")

    def step_to(self, host_step: int) -> None:
        pass

    def end(self) -> None:
        pass


def our_receiver(pipe: Any, folder: str, keys: str | None) -> None:
    import threading

    stop = multiprocessing.Event()
    clock: Any = Clock(Path(folder), stop)
    host = ReceiverHost(ReceiverOptions(keys=Path(keys) if keys is not None else None), 0)
    host.build()
    assert host._router is not None
    pipe.send(host._router.address)

    def wait() -> None:
        pipe.recv()
        clock.should_stop = True

    threading.Thread(target=wait, daemon=True).start()
    host.run(clock)
    stop.set()
    start_s = clock.release()
    pipe.send(cpu_s() - clock.before - start_s)
    host.close()
    clock.bus.close()


def ours(size: int, keys: str | None, mib: int) -> tuple[float, float]:
    folder = Path(tempfile.mkdtemp(prefix="asys-throughput-"))
    here, there = multiprocessing.Pipe()
    (folder / "r").mkdir()
    process = multiprocessing.get_context("spawn").Process(
        target=our_receiver, args=(there, str(folder / "r"), keys)
    )
    process.start()
    address = here.recv()
    packets = (mib << 20) // size
    bus = make_bus("remote", ("layer.0",), mib + mib // 8 + 16)
    producer = bus.producer()
    body = torch.zeros(size, dtype=torch.uint8)
    hook = bus.intern("layer.0")
    for number in range(packets):
        assert producer.try_push(
            PacketMeta(hook, 0, 5, (size,), host_step=number, timestamp_ns=1), body
        )
    run = folder / "run"
    run.mkdir()
    (run / "run.json").write_text(
        json.dumps(
            {"schema": "asys.run/1", "run_id": "run", "hooks": ["layer.0"], "host_pid": 1, "side_streams": [],
             "streams": [{"name": "layer.0"}], "step_unit": "step", "ranks": 1}
        )
    )  # fmt: skip
    page = StatsPage.create(["remote-0"])
    worker = ForwarderWorker(
        ForwarderOptions(
            to=address,
            keys=Path(keys) if keys is not None else None,
            on_slow="sample",
            wait_s=100,
            hold_s=0.1,
            max_mib_in_flight=IN_FLIGHT * (MESSAGE >> 20) + 1,
        )
    )
    reader = bus.subscribe("remote", "remote-0")
    known: dict[str, int] = {}
    worker.open(
        SinkContext(
            name="remote-0", run_dir=run, run_id="run", seed=0, slot=page.slot("remote-0"), wall_offset_ns=0,
            incarnation=0, name_of=bus.name_of, decode=lambda packet: packet.raw_tensor(),
            heartbeat=lambda: None, time_left_s=lambda: float("inf"),
            names=lambda: interned_names(bus, known), group="remote", account=bus.account, config=CONFIG,
        )
    )  # fmt: skip
    while not worker._connector.is_welcomed:
        worker.idle()
        time.sleep(0.001)
    before, started = cpu_s(), time.perf_counter()
    counts = worker._outbox.counts
    while counts.acked < packets:
        if worker.wants_packets:
            lease = reader.pull_batch(worker.max_packets, worker.linger_s, worker.min_packets)
            if len(lease):
                worker.consume(lease)
        worker.idle()
    took, used = time.perf_counter() - started, cpu_s() - before
    assert sum(counts.dropped.values()) == 0
    here.send(None)
    used += here.recv()
    process.join()
    worker.close()
    reader.close()
    bus.close()
    page.close()
    return took, used


def ring(size: int, keys: str | None, mib: int) -> tuple[float, float]:
    bus = make_bus("sinks", ("layer.0",), RING_MIB)
    stop = multiprocessing.Event()
    release = release_only(bus, "sinks", stop)
    producer = bus.producer()
    body = torch.zeros(size, dtype=torch.uint8)
    hook = bus.intern("layer.0")
    time.sleep(0.3)
    before, started = cpu_s(), time.perf_counter()
    for number in range((mib << 20) // size):
        assert producer.push(PacketMeta(hook, 0, 5, (size,), host_step=number), body, 10.0)
    took = time.perf_counter() - started
    bus.finish()
    start_s = release()
    used = cpu_s() - before - start_s
    bus.close()
    return took, used


RUN = {"bare": bare, "ours": ours, "ring": ring}


def main(rounds: int, mib: int) -> None:
    logging.getLogger("asys_bench").setLevel("ERROR")
    place = Path(tempfile.mkdtemp(prefix="asys-keys-"))
    make_keys(place / "keys")
    found: dict[Any, list[tuple[float, float]]] = {}
    for number in range(rounds):
        order = list(CASES)
        random.Random(number).shuffle(order)
        for case in order:
            kind, size, curve = case
            took, used = RUN[kind](size, str(place / "keys") if curve else None, mib)
            gigabytes = (mib << 20) / 1e9
            found.setdefault(case, []).append((gigabytes / took, used / gigabytes))
            print(
                number,
                case,
                f"{gigabytes / took:.2f} GB/s, {used / gigabytes:.2f} CPU s per GB",
                flush=True,
            )
    for size in (64 << 10, 1 << 20):
        for curve in (False, True):
            a, b = found["ours", size, curve], found["bare", size, curve]
            speed = statistics.median(x[0] / y[0] for x, y in zip(a, b, strict=True))
            cpu = statistics.median(y[1] / x[1] for x, y in zip(a, b, strict=True))
            local = statistics.median(
                x[0] / y[0] for x, y in zip(a, found["ring", size, False], strict=True)
            )
            here, there = (statistics.median(x[0] for x in case) for case in (a, b))
            print(
                f"{size >> 10} KiB, {'CURVE' if curve else 'plain'}: ours {here:.2f} GB/s, bare {there:.2f}; "
                f"in a round {speed:.2f} x bare by wall time, {cpu:.2f} x by CPU time per byte, "
                f"{local:.3f} x the local ring"
            )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 5,
        int(sys.argv[2]) if len(sys.argv) > 2 else 1024,
    )
