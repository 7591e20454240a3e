"""Peers that send a receiver what they should not, over a real socket, and what it costs the receiver.

    python -P tests/stress/hostile_peers.py SECONDS

The receiver is a process of its own (`asys-run receive`), with keys and without. Hostile peers know nothing,
or an allowed client's keys; they send lengths that lie, batches again and again, names that nobody gave,
messages of endless parts, random bytes in place of ZeroMQ's handshake. One honest peer sends packets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zmq

from asys_bench.cluster import wire
from asys_bench.cluster.keys import make_keys, read_key
from asys_bench.cluster.wire import Message
from asys_bench.contracts.packet import PacketMeta, pack_header_into

MEMORY_MIB = 48
TRAINERS = """
run: {name: receiver, dir: %(folder)s}
bus: {backend: cpp_spmc, capacity_mib: 8}
host: {kind: receiver, options: {receiver: {memory_mib: %(memory)d, window_mib: 16, max_message_mib: 8}}}
sinks: {archive: {kind: archiver}}
"""
HELLO = wire.Hello(
    job="job", run_id="honest", attempt=0, worker="remote-0", node="n", ranks=((0, 0),),
    names={0: "identity", 1: "layer.0"}, streams=({"name": "layer.0", "kind": "activation"},), side=(),
    step_unit="step", first_packet=0,
)  # fmt: skip


def packet_batch(number: int, seqs: list[int], nbytes: int = 1024) -> bytearray:
    sizes = [128 + nbytes] * len(seqs)
    data = bytearray(wire.batch_bytes(sizes))
    entries, at = [], wire.table_end(len(seqs))
    for seq in seqs:
        meta = PacketMeta(1, 0, 5, (1, nbytes), host_step=seq, timestamp_ns=1)
        pack_header_into(data, at, meta, seq=seq, shard=0, source=0, payload_bytes=nbytes)
        entries.append((at, 128 + nbytes))
        at += wire.aligned(128 + nbytes)
    wire.write_batch_head(memoryview(data), number, 1, entries)
    return data


class Peer:
    """A DEALER, with keys or without."""

    def __init__(
        self, context: Any, address: str, keys: Path | None, client: str = "client"
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, 200)
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        if keys is not None:
            self.socket.curve_publickey = read_key(keys / f"{client}.public").encode()
            self.socket.curve_secretkey = read_key(keys / f"{client}.secret").encode()
            self.socket.curve_serverkey = read_key(keys / "receiver.public").encode()
        self.socket.connect(address)

    def send(self, data: bytes | bytearray) -> bool:
        with suppress(zmq.ZMQError):
            self.socket.send(bytes(data))
            return True
        return False

    def hear(self, seconds: float = 0.5) -> tuple[Message, memoryview] | None:
        if not self.socket.poll(int(1000 * seconds)):
            return None
        data = memoryview(self.socket.recv())
        return wire.head(data)[0], data

    def close(self) -> None:
        self.socket.close(0)


class Honest:
    """Sends packets for as long as it is let; comes again after a reset."""

    def __init__(self, context: Any, address: str, keys: Path | None) -> None:
        self._context, self._address, self._keys = context, address, keys
        self.seq = self.accepted = self.connections = 0
        self._peer: Peer | None = None
        self._heard = time.monotonic()

    def work(self) -> None:
        if self._peer is None:
            self.connections += 1
            self._peer = Peer(self._context, self._address, self._keys)
            self._peer.send(wire.as_json(Message.HELLO, self.connections, HELLO))
            self._number = 0
            self._heard = time.monotonic()
        while (found := self._peer.hear(0.0)) is not None:
            kind, data = found
            self._heard = time.monotonic()
            if kind is Message.WELCOME:
                self.seq = wire.parse(wire.Welcome, data).accepted
                self._number = 1
                self._send()
            elif kind is Message.ACK:
                ack = wire.parse_ack(wire.head(data)[1], data)
                self.accepted = ack.total
                if ack.batch == self._number:
                    self._number += 1
                    self._send()
            else:
                self._peer.close()
                self._peer = None
                return
        if time.monotonic() - self._heard > 5.0:
            self._peer.close()
            self._peer = None

    def _send(self) -> None:
        assert self._peer is not None
        self._peer.send(packet_batch(self._number, list(range(self.seq, self.seq + 20))))
        self.seq += 20

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()


def attacks(rng: random.Random, context: Any, address: str, keys: Path | None) -> list[str]:
    """One hostile connection of each kind, in random order; the names of those that were made."""
    kinds = [
        random_bytes, lying_lengths, replays, unknown_names, endless_parts, another_protocol, no_hello,
        beyond_the_credit, wrong_json, raw_garbage, half_open,
    ]  # fmt: skip
    if keys is not None:
        kinds += [no_keys, unknown_key]
    chosen = rng.sample(kinds, 4)
    for attack in chosen:
        attack(rng, context, address, keys)
    return [attack.__name__ for attack in chosen]


def _stranger(rng: random.Random) -> wire.Hello:
    return dataclasses.replace(HELLO, run_id=f"hostile-{rng.randrange(50)}", worker="x")


@contextmanager
def _welcomed(rng: random.Random, context: Any, address: str, keys: Path | None) -> Iterator[Peer]:
    peer = Peer(context, address, keys)
    peer.send(wire.as_json(Message.HELLO, rng.randrange(1, 1 << 40), _stranger(rng)))
    peer.hear()
    yield peer
    peer.hear(0.05)
    peer.close()


def random_bytes(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with _welcomed(rng, context, address, keys) as peer:
        peer.send(rng.randbytes(rng.choice([1, 15, 16, 17, 100, 5000])))


def lying_lengths(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with _welcomed(rng, context, address, keys) as peer:
        data = packet_batch(1, [0, 1, 2])
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(16, wire.table_end(3) + 128)] = rng.randrange(256)
        peer.send(data[: rng.randrange(17, len(data))])


def replays(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with _welcomed(rng, context, address, keys) as peer:
        for number in (1, 1, 7, 0, 1 << 62):
            peer.send(packet_batch(number, [0, 1]))


def unknown_names(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with _welcomed(rng, context, address, keys) as peer:
        data = packet_batch(1, [5])
        at = wire.table_end(1) + rng.choice([48, 52, 54, 56])
        data[at] = 0xEE
        peer.send(data)


def endless_parts(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    """libzmq sends no part before the last one is there, so this speaks ZMTP itself, without CURVE."""
    with suppress(OSError), _raw(address) as raw:
        raw.settimeout(2.0)
        raw.sendall(_GREETING)
        raw.recv(64)
        raw.sendall(bytes((4, len(_READY))) + _READY)
        part = b"\x03" + (1 << 20).to_bytes(8) + bytes(1 << 20)  # more to come, a long size
        for _ in range(8 * MEMORY_MIB):
            raw.sendall(part)


def another_protocol(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    peer = Peer(context, address, keys)
    data = bytearray(wire.as_json(Message.HELLO, 1, _stranger(rng)))
    data[4] = 9
    peer.send(data)
    peer.hear(0.05)
    peer.close()


def no_hello(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    peer = Peer(context, address, keys)
    peer.send(packet_batch(1, [0]))
    peer.hear(0.05)
    peer.close()


def beyond_the_credit(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with _welcomed(rng, context, address, keys) as peer:
        for number in range(1, 12):
            peer.send(packet_batch(number, list(range(number * 1000, number * 1000 + 900)), 4096))


def wrong_json(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    peer = Peer(context, address, keys)
    body = rng.choice([b"[" * 100_000, b"{}", b'{"job": 1}', b"\xff" * 100, b"x" * (3 << 20)])
    peer.send(wire.message(rng.choice([Message.HELLO, Message.REPORT, Message.NAMES]), 1, body))
    peer.hear(0.05)
    peer.close()


_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def _raw(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), 1)


def raw_garbage(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with suppress(OSError), _raw(address) as raw:
        raw.sendall(rng.randbytes(rng.choice([3, 64, 4096])))
    with suppress(OSError), _raw(address) as raw:
        raw.sendall(_GREETING + bytes((4, len(_READY))) + _READY)
        raw.sendall(b"\x02" + (1 << 62).to_bytes(8) + bytes(100))


_left_open: list[socket.socket] = []


def half_open(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    with suppress(OSError):
        _left_open.append(_raw(address))
    while len(_left_open) > 64:
        _left_open.pop(0).close()


def no_keys(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    peer = Peer(context, address, None)
    peer.send(wire.as_json(Message.HELLO, 1, _stranger(rng)))
    peer.hear(0.05)
    peer.close()


def unknown_key(rng: random.Random, context: Any, address: str, keys: Path | None) -> None:
    peer = Peer(context, address, keys, "stranger")
    peer.send(wire.as_json(Message.HELLO, 1, _stranger(rng)))
    peer.hear(0.1)
    peer.close()


@dataclasses.dataclass
class End:
    """What became of a receiver."""

    attacks: dict[str, int]
    refused: dict[str, int]
    accepted: int
    honest_connections: int
    most_own_mib: float
    first_own_mib: float
    exit_code: int


def attack(folder: Path, seconds: float, *, keyed: bool, seed: int = 1) -> End:
    """Hostile peers for so many seconds."""
    rng = random.Random(seed)
    config = folder / "trainers.yaml"
    config.write_text(TRAINERS % {"folder": folder, "memory": MEMORY_MIB})
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "receive", "--config", str(config)]
    keys = None
    if keyed:
        keys = folder / "keys"
        make_keys(keys, ["client", "stranger"])
        (keys / "allowed/stranger.public").unlink()
        command += ["--keys", str(keys)]
    log = folder / "receiver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    context = zmq.Context()
    try:
        address = ""
        deadline = time.monotonic() + 120
        while not address:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            for line in log.read_text().splitlines():
                if "listening at" in line:
                    address = line.split()[-1]
            time.sleep(0.05)
        honest = Honest(context, address, keys)
        while honest.accepted < 20:  # the run has begun
            honest.work()
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        first = most = own_mib(process.pid)
        made: dict[str, int] = {}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for name in attacks(rng, context, address, keys):
                made[name] = made.get(name, 0) + 1
                honest.work()
            most = max(most, own_mib(process.pid))
            assert process.poll() is None, log.read_text()[-4000:]
        before = honest.accepted
        deadline = time.monotonic() + 60
        while honest.accepted <= before:
            honest.work()
            time.sleep(0.02)
            assert time.monotonic() < deadline, "the honest peer is not served any more"
        honest.close()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        document = json.loads((folder / "receiver/cluster/receiver.json").read_text())
        return End(
            made, document["refused"], honest.accepted, honest.connections, most, first, code
        )  # fmt: skip
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        context.destroy(linger=0)
        while _left_open:
            _left_open.pop().close()


def own_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    import tempfile

    for with_keys in (False, True):
        with tempfile.TemporaryDirectory() as place:
            print(attack(Path(place), float(sys.argv[1]), keyed=with_keys), flush=True)
