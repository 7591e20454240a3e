"""A storm on one host and one receiver: connections, forwarders, workers and receivers die at random.

    python -P tests/stress/network_storm.py [SEED]

ASYS_STORM_CONNECTIONS, _FORWARDERS, _WORKERS and _RECEIVERS say how many (600, 300, 80, 20). The host is a
training script under `asys-run`; its forwarder sends through a relay in this process, which resets
connections or lets them stand half open. The receiver is `asys-run receive`, started again by this process in
its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asys_bench.contracts.stats import SlotField, StatsPage, WorkerState
from asys_bench.rundir.open_run import open_run

SCRIPT = """
import hashlib, os, sys, time, torch
torch.set_num_threads(1)
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
rows = torch.randn(4096, 64)
stop, out, most, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
step = 0
model.train()
while step < most and not (step % 8 == 0 and os.path.exists(stop)):
    batch = rows[(step * 4) % 4096 :][:4]
    loss = (model(batch) - batch).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    time.sleep(pause)
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
with open(out, "w") as file:
    file.write(f"{step} {digest}")
"""
WATCHDOG = """
watchdog: {restart_limit: 1000, restart_window_s: 7200, backoff_initial_s: 0.05, backoff_max_s: 0.05,
           heartbeat_timeout_s: 60, startup_timeout_s: 180}
"""
HOST = (
    """
run: {name: host, dir: %(folder)s/hosts, drain_timeout_s: 120}
bus: {backend: cpp_spmc, capacity_mib: 16}
host: {kind: script, options: {script: {path: %(script)s, args: %(args)s}}}
hooks: [{match: ["0", "2"], sampling: {min_rate: 1.0}}]
sinks:
  archive: {kind: archiver, options: {linger_s: 0.1}}
  remote:
    kind: forwarder
    options: {to: "tcp://127.0.0.1:%(relay)d", wait_s: 600, max_mib_in_flight: 64, hold_s: 5,
              backoff_max_s: 0.3}
"""
    + WATCHDOG
)
TRAINERS = (
    """
run: {name: receiver, dir: %(folder)s, drain_timeout_s: 60}
bus: {backend: cpp_spmc, capacity_mib: 8, capacity_packets: 4096}
sinks: {archive: {kind: archiver, options: {linger_s: 0.1}}}
"""
    + WATCHDOG
)


@dataclass(frozen=True)
class Storm:
    """How many of what die."""

    connections: int = 600
    forwarders: int = 300
    workers: int = 80
    receivers: int = 20
    seed: int = 1
    calm_s: float = 0.25
    pause_s: float = 0.004

    @classmethod
    def from_environment(cls, seed: int = 1) -> Storm:
        names = ("connections", "forwarders", "workers", "receivers")
        found = {n: os.environ.get(f"ASYS_STORM_{n.upper()}") for n in names}
        return cls(**{n: int(v) for n, v in found.items() if v is not None}, seed=seed)


FROZEN_S = {"half_open": 3.0, "silent": 20.0}
"""For so long nothing goes through a connection that stands; the second is longer than a forwarder waits."""
WAYS, WEIGHTS = ("reset", *FROZEN_S), (12, 5, 1)
BUS_PACKETS = 4096
"""What the receiver's bus holds at most: lost with a receiver and all of its workers at once, and no more."""
STUBBORN_S = 2.0
"""For so long a strike waits for what it is to hit, so that each kind has its share all the time."""
UNCONNECTED = 0.02
"""Of the looks at a forwarder without a connection, how many kill it."""


class Relay:
    """TCP from the forwarder to the receiver; a strike resets every connection or freezes it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.target = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._frozen: list[tuple[float, socket.socket, socket.socket]] = []
        self._orders: list[str] = []
        self._lock = threading.Lock()
        self._over = False
        self.bytes = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def strike(self, how: str) -> None:
        with self._lock:
            self._orders.append(how)

    @property
    def is_busy(self) -> bool:
        return bool(self._pairs)

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.02):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._pairs:
                    self._pass(key.fileobj)  # type: ignore[arg-type]
            with self._lock:
                orders, self._orders = self._orders, []
            for how in orders:
                for one in self._firsts():
                    self._end(one, how)
            now = time.monotonic()
            for until, a, b in [entry for entry in self._frozen if entry[0] < now]:
                self._frozen.remove((until, a, b))
                a.close()
                b.close()
        for one in self._firsts():
            self._end(one, "reset")
        self._listener.close()

    def _firsts(self) -> list[socket.socket]:
        seen: set[int] = set()
        found = []
        for a, b in self._pairs.items():
            if id(a) not in seen:
                found.append(a)
                seen |= {id(a), id(b)}
        return found

    def _accept(self) -> None:
        with suppress(OSError):
            a, _ = self._listener.accept()
            try:
                b = socket.create_connection(("127.0.0.1", self.target), 0.5)
            except OSError:
                a.close()
                return
            for one, other in ((a, b), (b, a)):
                one.settimeout(5.0)
                self._pairs[one] = other
                self._selector.register(one, selectors.EVENT_READ)

    def _pass(self, one: socket.socket) -> None:
        try:
            data = one.recv(1 << 20)
            if data:
                self._pairs[one].sendall(data)
                self.bytes += len(data)
                return
        except OSError:
            pass
        self._end(one, "close")

    def _end(self, one: socket.socket, how: str) -> None:
        other = self._pairs.pop(one, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for end in (one, other):
            self._selector.unregister(end)
        if how in FROZEN_S:
            self._frozen.append((time.monotonic() + FROZEN_S[how], one, other))
            return
        for end in (one, other):
            if how == "reset":
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()

    def close(self) -> None:
        self._over = True
        self._thread.join()


@dataclass
class End:
    """What the storm came to. broken: promises that were; empty is good."""

    struck: dict[str, int]
    figures: dict[str, Any]
    broken: list[str] = field(default_factory=list)


class Stage:
    """The processes of a storm."""

    def __init__(self, folder: Path, storm: Storm) -> None:
        self.folder, self.storm = folder, storm
        self.relay = Relay()
        (folder / "train.py").write_text(SCRIPT)
        self.stop_file, self.result_file = folder / "stop", folder / "result"
        args = [str(self.stop_file), str(self.result_file), "100000000", str(storm.pause_s)]
        (folder / "host.yaml").write_text(
            HOST % {"folder": folder, "script": folder / "train.py", "args": json.dumps(args),
                    "relay": self.relay.port}
        )  # fmt: skip
        (folder / "trainers.yaml").write_text(TRAINERS % {"folder": folder})
        self.receiver_port = _free_port()
        self.relay.target = self.receiver_port
        self.receiver: subprocess.Popen[bytes] | None = None
        self.host: subprocess.Popen[bytes] | None = None

    def start_receiver(self) -> None:
        command = [
            "receive", "--config", str(self.folder / "trainers.yaml"),
            "--listen", f"127.0.0.1:{self.receiver_port}", "--name", "receiver",
        ]  # fmt: skip
        self.receiver = self._run(command, "receiver.log")

    def start_host(self) -> None:
        self.host = self._run(["--config", str(self.folder / "host.yaml")], "host.log")

    def _run(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "asys_bench.cli.run", *command],
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def pid(self, run: Path, worker: str) -> int:
        """Of a worker that is ready; 0: there is none now."""
        page = None
        try:
            document = json.loads((run / "run.json").read_text())
            page = StatsPage.attach(os.open(document["stats_page"], os.O_RDWR))
            slot = page.slot(worker)
            return slot.get(SlotField.PID) if slot.state is WorkerState.READY else 0
        except (OSError, ValueError, KeyError, RuntimeError):
            return 0
        finally:
            if page is not None:
                page.close()

    def accepted(self) -> int:
        try:
            return int(
                json.loads((self.folder / "receiver/cluster/receiver.json").read_text())["accepted"]
            )
        except (OSError, ValueError, KeyError):
            return 0

    def end(self) -> None:
        for process in (self.host, self.receiver):
            if process is not None and process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.relay.close()


def strike(folder: Path, storm: Storm, tell: Any = print) -> End:
    """Run the storm, and check everything that was promised."""
    rng = random.Random(storm.seed)
    shm_before = _in_shm()
    stage = Stage(folder, storm)
    struck: Counter[str] = Counter()
    started = time.monotonic()
    try:
        stage.start_receiver()
        stage.start_host()
        _wait(lambda: stage.accepted() > 0, stage, "the first packets")
        left = {
            "connection": storm.connections, "forwarder": storm.forwarders, "worker": storm.workers,
            "receiver": storm.receivers,
        }  # fmt: skip
        next_told = 0.0
        kind, since = "", 0.0
        while any(left.values()):
            if not left.get(kind) or time.monotonic() > since + STUBBORN_S:
                kinds = [kind for kind, count in left.items() if count]
                kind = rng.choices(kinds, [left[one] for one in kinds])[0]
                since = time.monotonic()
            if _hit(kind, stage, rng):
                left[kind] -= 1
                struck[kind] += 1
                since = 0.0
                time.sleep(storm.calm_s * rng.uniform(0.2, 1.8))
            else:
                time.sleep(0.02)
            assert stage.host is not None
            assert stage.host.poll() is None, (folder / "host.log").read_text()[-3000:]
            assert stage.receiver is not None
            if stage.receiver.poll() is not None:
                raise AssertionError((folder / "receiver.log").read_text()[-3000:])
            if time.monotonic() > next_told:
                next_told = time.monotonic() + 30
                tell(
                    f"{time.monotonic() - started:.0f} s: {dict(struck)}, accepted {stage.accepted()}",
                    flush=True,
                )
        before = stage.accepted()
        _wait(lambda: stage.accepted() > before, stage, "packets after the storm")
        stage.stop_file.touch()
        assert stage.host is not None
        assert stage.receiver is not None
        host_code = stage.host.wait(400)
        stage.receiver.send_signal(signal.SIGTERM)
        receiver_code = stage.receiver.wait(400)
        seconds = round(time.monotonic() - started)
        end = check(folder, dict(struck))
        end.figures |= {
            "seconds": seconds,
            "relayed_mib": stage.relay.bytes >> 20,
            "host": host_code,
            "receiver": receiver_code,
        }
        if host_code != 0:
            end.broken.append(f"host exit {host_code}: {(folder / 'host.log').read_text()[-1500:]}")
        if receiver_code != 143:
            end.broken.append(
                f"receiver exit {receiver_code}: {(folder / 'receiver.log').read_text()[-1500:]}"
            )
        if left_there := _in_shm() - shm_before:
            end.broken.append(f"/dev/shm: {sorted(left_there)}")
        return end
    finally:
        stage.end()


def _hit(kind: str, stage: Stage, rng: random.Random) -> bool:
    """False: there is nothing to strike now."""
    if kind == "connection":
        if not stage.relay.is_busy:
            return False
        stage.relay.strike(*rng.choices(WAYS, WEIGHTS))
        return True
    if kind == "receiver":
        assert stage.receiver is not None
        if not stage.pid(stage.folder / "receiver", "archive-0"):
            return False
        stage.receiver.kill()
        stage.receiver.wait()
        stage.start_receiver()
        return True
    if kind == "forwarder" and not stage.relay.is_busy and rng.random() > UNCONNECTED:
        return False
    run, worker = (
        (host_run(stage.folder), "remote-0")
        if kind == "forwarder"
        else rng.choice(
            [(host_run(stage.folder), "archive-0"), (stage.folder / "receiver", "archive-0")]
        )
    )
    pid = stage.pid(run, worker)
    if not pid:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def host_run(folder: Path) -> Path:
    return next(iter((folder / "hosts").glob("*/run.json"))).parent


def _in_shm() -> set[str]:
    """Names in /dev/shm, but for those of other transports, which may be measured meanwhile."""
    return {one for one in os.listdir("/dev/shm") if "zenoh" not in one and "iox2" not in one}


def check(folder: Path, struck: dict[str, int]) -> End:
    """Both accounts, both archives, the weights, of a storm that is over in `folder`."""
    hosts, receiver_run = host_run(folder), folder / "receiver"
    forwarder = json.loads((hosts / "cluster/remote-0.json").read_text())
    receiver = json.loads((receiver_run / "cluster/receiver.json").read_text())
    host_account = json.loads((hosts / "run.json").read_text())["attempts"][-1]["account"]
    group, archived = (
        next(one for one in host_account["groups"] if one["group"] == name)
        for name in ("remote", "archive")
    )
    attempts = json.loads((receiver_run / "run.json").read_text())["attempts"]
    broken = []

    def must(holds: bool, what: str) -> None:
        if not holds:
            broken.append(what)

    dropped = sum(forwarder["dropped"].values())
    must(group["imbalance"] == 0, f"the bus's account of the forwarder: {group}")
    must(
        forwarder["taken"] == group["delivered"],
        f"taken {forwarder['taken']}, delivered {group['delivered']}",
    )
    must(
        forwarder["taken"] == forwarder["acked"] + dropped + forwarder["in_flight"]
        and forwarder["in_flight"] == 0,
        f"forwarder: {forwarder}",
    )
    dead = group["dead_lettered"]
    window = receiver["accepted"] - forwarder["acked"]
    must(
        0 <= window <= dead,
        f"accepted {receiver['accepted']}, acked {forwarder['acked']}, dead letters {dead}",
    )
    repeated, rows = _packets(receiver_run)
    _, host_rows = _packets(hosts)
    must(repeated == 0, f"{repeated} rows are in the receiver's archive twice")
    differing = [key for key in rows if key in host_rows and rows[key] != host_rows[key]]
    strange = [key for key in rows if key not in host_rows]
    must(not differing, f"{len(differing)} packets differ from those of the host's archive")
    must(archived["imbalance"] == 0, f"the bus's account of the archive: {archived}")
    unread = without_account = 0
    for one in attempts:
        account = one.get("account")
        if account is None:  # killed with its only worker: what was on its bus is gone
            without_account += 1
            continue
        its = account["groups"][0]
        must(its["imbalance"] == 0, f"receiver's attempt {one['attempt']}: {account}")
        unread += its["ready"] + its["dead_lettered"] + its["lost_in_flight"] + its["missed"]
    pushed = receiver["accepted"]
    gone = pushed - unread - len(rows)
    must(
        0 <= gone <= receiver["in_doubt"] + without_account * BUS_PACKETS,
        f"{len(rows)} packets in the receiver's archive, {pushed} accepted, {unread} unread, "
        f"{receiver['in_doubt']} in doubt, {without_account} attempts without an account",
    )
    offered = host_account["produced"] - sum(host_account["dropped"].values())
    must(
        forwarder["taken"] + dead == offered,
        f"offered {offered}, taken {forwarder['taken']}, dead letters {dead}",
    )
    not_there = offered - len(host_rows)
    must(
        0 <= not_there <= archived["dead_lettered"] and len(strange) <= not_there,
        f"{len(host_rows)} packets in the host's archive of {offered} offered, {len(strange)} only in the "
        f"receiver's, dead letters {archived['dead_lettered']}",
    )
    steps, digest = (folder / "result").read_text().split()
    twin = subprocess.run(
        [sys.executable, str(folder / "train.py"), str(folder / "never"), str(folder / "twin"), steps,
         "0"],
        check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    must(
        twin.returncode == 0 and (folder / "twin").read_text().split()[1] == digest,
        "the host's weights",
    )
    figures = {
        "steps": int(steps), "offered": offered, "taken": forwarder["taken"], "acked": forwarder["acked"],
        "dropped": {k: v for k, v in forwarder["dropped"].items() if v}, "dead_letters": dead,
        "accepted": receiver["accepted"], "duplicates_refused": receiver["duplicates"],
        "in_doubt": receiver["in_doubt"], "receiver_attempts": len(attempts),
        "without_account": without_account, "gone_with_them": gone,
        "archived": len(rows), "unread": unread, "not_in_the_hosts_archive": len(strange),
        "connections": forwarder["connections"], "resent": forwarder["resent"],
        "host_sampled_out_or_dropped": host_account["dropped"],
    }  # fmt: skip
    return End(struck, figures, broken)


def _packets(run: Path) -> tuple[int, dict[Any, str]]:
    """(rows that are there again, over all attempts; (hook, source, shard, seq) -> a hash of its rows)."""
    archive = open_run(run).archive
    repeated, found = 0, {}
    for hook in archive.hooks:
        columns = archive.numpy(hook, ("source", "shard", "seq", "row", "values"))
        names = ("source", "shard", "seq", "row")
        keys = np.stack([columns[name].astype(np.int64) for name in names], axis=1)
        order = np.lexsort(keys.T[::-1])
        keys, values = keys[order], columns["values"][order]
        again = np.r_[False, (keys[1:] == keys[:-1]).all(axis=1)]
        repeated += int(again.sum())
        keys, values = keys[~again, :3], values[~again]
        starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)]).tolist()
        for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
            digest = hashlib.sha256(values[start:stop].tobytes()).hexdigest()
            found[hook, *keys[start].tolist()] = digest
    return repeated, found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(check: Any, stage: Stage, what: str, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        for process, log in ((stage.host, "host.log"), (stage.receiver, "receiver.log")):
            assert process is not None
            if process.poll() is not None:
                raise AssertionError(f"{log}: {(stage.folder / log).read_text()[-3000:]}")
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


if __name__ == "__main__":
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="asys-network-storm-"))
    print(
        place, strike(place, Storm.from_environment(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
    )
