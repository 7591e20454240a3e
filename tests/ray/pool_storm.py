"""A pool under blows: what happens to its receivers, to the host and to the account.

    python pool_storm.py ACTORS RAYLETS STORES [FOLDER]     prints a line of JSON per blow, and one at the end

A host in a process of its own trains on and sends to the pool's receiver, which trains an SAE and archives.
ACTORS times the receiver's actor is killed, RAYLETS times the raylet of its node, and STORES times the
control store, which does not come back: the nodes end, the receiver drains and leaves, and a new cluster and
a new pool take over. At the end the host is stopped, then the pool, and everything is counted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from asys_bench.cluster import pool
from asys_bench.cluster.book import Book
from asys_bench.cluster.ray_cluster import joined
from asys_bench.config import load_config
from asys_bench.sinks.archive import open_archive, read_shard

sys.path.append(str(Path(__file__).parent))
from nodes import TwoNodes

HOOK, NAME = "layers.0", "storm"
RECEIVER = f"{NAME}.all"
PATIENCE_S = float(os.environ.get("ASYS_STORM_PATIENCE_S", "120"))
BETWEEN_S = float(os.environ.get("ASYS_STORM_BETWEEN_S", "3"))
"""Between a receiver that listens and the next blow."""


def say(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def wait_for(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    until = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.1)
    return found


def document(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


@dataclass
class Storm:
    """One storm in one folder."""

    folder: Path
    cpus: int = 2
    recovered_s: dict[str, list[float]] = field(default_factory=dict)
    left_s: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    host: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.nodes = TwoNodes(self.folder / "ray", self.cpus)
        self.book = Book.open(self.folder / "book")
        self.pool_file = self.folder / "trainers.yaml"
        self.pool_file.write_text(yaml.safe_dump(self.trainers()))

    @property
    def run(self) -> Path:
        """The receiver's."""
        return self.folder / "receivers" / RECEIVER

    @property
    def host_run(self) -> Path:
        return self.folder / "hosts" / "host"

    def trainers(self) -> dict[str, Any]:
        sae = {"architecture": "topk", "k": 4, "d_sae": 64, "threads": 1, "buffer_rows": 2048,
               "batch_rows": 64, "checkpoint_interval_s": 2}  # fmt: skip
        return {
            "run": {"dir": str(self.folder / "receivers"), "drain_timeout_s": 30},
            "bus": {"backend": "cpp_spmc", "capacity_mib": 32},
            "sinks": {
                "trainer": {"kind": "sae_trainer", "options": {"sae": sae}},
                "archive": {"kind": "archiver", "options": {"max_gib": None}},
            },
            "watchdog": {"startup_timeout_s": 120},
            "pool": {"name": NAME, "book": str(self.folder / "book")},
        }

    def start_host(self) -> None:
        synthetic = {"width": 32, "rows": 8, "layers": 1, "pause_ms": 20, "train": True}
        host = {
            "run": {"dir": str(self.folder / "hosts"), "id": "host", "drain_timeout_s": 30},
            "host": {"kind": "synthetic", "options": {"synthetic": synthetic}},
            "hooks": [{"match": HOOK}],
            "bus": {"backend": "cpp_spmc", "capacity_mib": 32},
            "watchdog": {"startup_timeout_s": 120},
            "sinks": {
                "archive": {"kind": "archiver", "options": {"max_gib": None}},
                "remote": {"kind": "forwarder", "options": {"book": str(self.folder / "book")}},
            },
        }
        path = self.folder / "host.yaml"
        path.write_text(yaml.safe_dump(host))
        with (self.folder / "host.log").open("wb") as log:
            command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "--config", str(path)]
            self.host = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def taken(self) -> int:
        """Packets that the host's forwarder has had so far."""
        return int(document(self.host_run / "cluster" / "remote-0.json").get("taken", 0))

    def sae_step(self) -> int:
        latest = self.run / "sae" / HOOK / "latest"
        try:
            return int(latest.readlink().name.rpartition("_")[2])
        except (OSError, ValueError):
            return 0

    @contextmanager
    def ray(self) -> Iterator[Any]:
        with joined(self.nodes.address) as ray:
            yield ray

    def start_pool(self) -> float:
        """Seconds until every receiver listened."""
        spec = pool.PoolSpec.of(load_config(self.pool_file, ["host.kind=receiver"]).config)
        began = time.monotonic()
        with self.ray() as ray:
            pool.start(ray, spec, lambda one: None)
        return time.monotonic() - began

    def status(self) -> pool.GroupStatus:
        with self.ray() as ray:
            (found,) = pool.status(ray, NAME)
        return found

    def listening(self, but: int = 0) -> pool.GroupStatus:
        """The receiver that listens, another one than the process `but`, and has its host."""

        def found() -> pool.GroupStatus | None:
            try:
                with self.ray() as ray:
                    (one,) = pool.status(ray, NAME)
            except (pool.PoolError, RuntimeError):
                return None
            connected = (one.figures or {}).get("connections", 0) > 0
            return one if one.state == "listening" and one.pid != but and connected else None

        one: pool.GroupStatus = wait_for(found, "a receiver that listens and has its host")
        return one

    def strike(self, kind: str, blow: Callable[[pool.GroupStatus], None]) -> None:
        """One blow, until another receiver has the host and the SAE has taken a step more."""
        before, step = self.listening(), self.sae_step()
        taken, began = self.taken(), time.monotonic()
        blow(before)
        after = self.listening(before.pid)
        took_s = time.monotonic() - began
        self.recovered_s.setdefault(kind, []).append(took_s)
        wait_for(lambda: self.sae_step() > step, "a later checkpoint of the SAE")
        assert self.host is not None
        assert self.host.poll() is None, "the host has ended"
        wait_for(lambda: self.taken() > taken, "the host goes on")
        self.steps.append(self.sae_step())
        (entry,) = self.book.entries()
        say(blow=kind, recovered_s=round(took_s, 1), generation=entry.generation, pid=after.pid,
            sae_step=self.sae_step(), sae_step_before=step, host_packets=self.taken())  # fmt: skip
        time.sleep(BETWEEN_S)

    def kill_actor(self, before: pool.GroupStatus) -> None:
        os.kill(before.actor_pid, signal.SIGKILL)

    def kill_raylet(self, before: pool.GroupStatus) -> None:
        raylet = psutil.Process(before.actor_pid).ppid()
        self.nodes.restart(self.nodes.raylets.index(raylet))

    def kill_store(self, before: pool.GroupStatus) -> None:
        """The control store: the cluster ends with it, and a new one takes its place."""
        began, taken = time.monotonic(), self.taken()
        self.nodes.kill_gcs()
        wait_for(lambda: not psutil.pid_exists(before.pid), "the receiver leaves")
        self.left_s.append(time.monotonic() - began)
        assert document(self.run / "cluster" / "receiver.json").get("final") is True, (
            "it did not drain"
        )
        wait_for(lambda: self.taken() > taken, "the host goes on without its receiver")
        self.nodes.stop()
        self.nodes = TwoNodes(self.folder / "ray", self.cpus)
        self.nodes.start()
        self.start_pool()

    def end(self) -> dict[str, Any]:
        """Stop the host, then the pool; the account."""
        host = self.host
        assert host is not None
        host.send_signal(signal.SIGTERM)
        code = host.wait(PATIENCE_S)
        with self.ray() as ray:
            pool.stop(ray, NAME, 30.0)
        forwarder = document(self.host_run / "cluster" / "remote-0.json")
        receiver = document(self.run / "cluster" / "receiver.json")
        keys = archived_keys(self.run)
        theirs = archived_keys(self.host_run)
        dropped = forwarder["dropped"]
        return {
            "host_exit": code,
            "taken": forwarder["taken"], "acked": forwarder["acked"], "dropped": dropped,
            "in_flight": forwarder["in_flight"], "final": [forwarder["final"], receiver["final"]],
            "accepted": receiver["accepted"], "duplicates_refused": receiver["duplicates"],
            "in_doubt": receiver["in_doubt"],
            "host_archived": len(theirs), "archived": len(keys),
            "archived_twice": len(keys) - len(set(keys)),
            "archived_of_nobody": len(set(keys) - set(theirs)),
            "entries_left": len(self.book.entries()),
            "sae_steps": self.steps,
            "sae_resumed": all(a <= b for a, b in zip(self.steps, self.steps[1:], strict=False)),
            "recovered_s": {kind: [round(min(all_s), 1), round(max(all_s), 1)]
                            for kind, all_s in self.recovered_s.items()},
            "left_after_store_s": [round(s, 1) for s in self.left_s],
        }  # fmt: skip

    def close(self) -> None:
        if self.host is not None and self.host.poll() is None:
            self.host.terminate()
            try:
                self.host.wait(60)
            except subprocess.TimeoutExpired:
                self.host.kill()
                self.host.wait()
        self.nodes.stop()


def archived_keys(run: Path) -> list[tuple[int, ...]]:
    """(source, shard, seq) of every archived packet, of each as often as it is there."""
    found: list[tuple[int, ...]] = []
    for path in open_archive(run).shards(HOOK):
        for batch in read_shard(path)[0]:
            columns = [batch.column(name).to_pylist() for name in ("source", "shard", "seq", "row")]
            found += [(s, d, q) for s, d, q, row in zip(*columns, strict=True) if row == 0]
    return found


def strike_all(storm: Storm, actors: int, raylets: int, stores: int) -> dict[str, Any]:
    """The whole storm; its figures."""
    storm.nodes.start()
    up_s = storm.start_pool()
    say(pool_up_s=round(up_s, 1))
    storm.start_host()
    storm.listening()
    wait_for(storm.sae_step, "a first checkpoint of the SAE")
    for number in range(max(actors, raylets)):
        if number < actors:
            storm.strike("actor", storm.kill_actor)
        if number < raylets:
            storm.strike("raylet", storm.kill_raylet)
    for _ in range(stores):
        storm.strike("store", storm.kill_store)
    return {"pool_up_s": round(up_s, 1), **storm.end()}


def main(words: list[str]) -> int:
    actors, raylets, stores = (int(word) for word in words[:3])
    folder = Path(words[3]) if len(words) > 3 else Path(tempfile.mkdtemp(prefix="asys-pool-"))
    storm = Storm(folder)
    try:
        say(**strike_all(storm, actors, raylets, stores))
    finally:
        storm.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
