"""A Ray cluster of a head and two nodes with CPUs, and GPUs in name, in a process of its own: `python
nodes.py CPUS GPUS` starts it with `ray.cluster_utils.Cluster`, prints a line of JSON about it, obeys lines
on standard input:

    restart N       SIGKILL to the raylet of node N; another node takes its place
    kill_gcs        SIGKILL to the control store
    stop            stop all

The first two are answered by the line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

NODE_S = 240.0
GCS_AWAY_S = 10
"""A raylet ends when its control store was away for so long (60 by default)."""


class TwoNodes:
    """The test's side."""

    def __init__(self, folder: Path, cpus: int = 1, gpus: int = 0) -> None:
        self.folder, self._each = folder, (cpus, gpus)
        self._process: subprocess.Popen[str] | None = None
        # Sockets of Ray lie below it: their paths have at most 107 characters.
        self._temp = Path(tempfile.mkdtemp(prefix="asys-ray-"))
        self.address = ""
        self.raylets: list[int] = []
        self.gcs = 0

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(self._temp),
            "PYTHONUNBUFFERED": "1", "RAY_gcs_server_port_wait_time_s": "120",
            "RAY_agent_register_timeout_ms": "240000",
            "RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0",
        }  # fmt: skip
        with (self.folder / "nodes.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, *map(str, self._each)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self._hear()

    def restart(self, node: int) -> None:
        """SIGKILL raylet `node`; another takes its place."""
        self._tell(f"restart {node}")

    def kill_gcs(self) -> None:
        self._tell("kill_gcs")

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        ours = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        if process.poll() is None:
            try:
                process.stdin.write("stop\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                process.wait(60)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
        for one in ours:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(ours, timeout=10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                told = json.loads(line)
                self.address, self.raylets, self.gcs = told["address"], told["raylets"], told["gcs"]
                return
        raise RuntimeError((self.folder / "nodes.log").read_text()[-2000:])


def _be_patient() -> None:
    """A node that starts asks for itself for 30 s and gives up; on a busy machine it is there later."""
    from ray._private import services

    get_node = services.get_node

    def patient(*about: Any) -> Any:
        until = time.monotonic() + NODE_S
        while True:
            try:
                return get_node(*about)
            except RuntimeError:
                if time.monotonic() > until:
                    raise

    services.get_node = patient


def _pid(node: Any, kind: str) -> int:
    (info,) = node.all_processes[kind]
    return int(info.process.pid)


def main(cpus: int, gpus: int) -> None:
    from ray.cluster_utils import Cluster

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _be_patient()
    memory = {"object_store_memory": 80 << 20}
    each = {**memory, "num_cpus": cpus, "num_gpus": gpus}
    head = {
        **memory, "num_cpus": 0, "include_dashboard": False,
        "_system_config": {"gcs_rpc_server_reconnect_timeout_s": GCS_AWAY_S},
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**each) for _ in range(2)]
    while True:
        gcs = cluster.head_node.all_processes.get("gcs_server")
        about = {
            "address": cluster.address, "raylets": [_pid(node, "raylet") for node in nodes],
            "gcs": gcs[0].process.pid if gcs else 0,
        }  # fmt: skip
        print(json.dumps(about), flush=True)
        words = (sys.stdin.readline() or "stop").split()
        if words[0] == "restart":
            number = int(words[1])
            os.kill(_pid(nodes[number], "raylet"), signal.SIGKILL)
            cluster.remove_node(nodes[number], allow_graceful=False)
            nodes[number] = cluster.add_node(**each)
        elif words[0] == "kill_gcs":
            os.kill(about["gcs"], signal.SIGKILL)
        else:
            break
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
