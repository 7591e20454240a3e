"""A training machine and a machine for SAEs, and what goes wrong between them.

    python -P tests/stress/run_network.py [CONDITION...]     as root; a line of JSON per condition

Machines are network namespaces (`network`). What the network costs the training is `network_step`'s to say.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from rich.console import Console

from asys_bench.cli.commands import run_top
from asys_bench.cli.run import main as asys_run
from asys_bench.cluster.identities import Verdict
from asys_bench.cluster.status import read_cluster
from asys_bench.monitors.figures import RemoteFigures, RunFigures, figures_of
from asys_bench.monitors.snapshot import take_snapshot
from asys_bench.reports.run_report.page import render_run
from asys_bench.reports.run_report.record import read_run
from asys_bench.rundir.attach import RunGoneError, attach_run
from asys_bench.rundir.cluster_accounts import ClusterVerification, verify_cluster

if __package__:
    from .network import Network, Node, missing
else:
    sys.path.insert(0, str(Path(__file__).parent))
    from network import Network, Node, missing

HOST = Path(__file__).with_name("network_host.py")
PORT = 7400
AHEAD_S = 500_000
"""By how much the receiver's monotonic clock is ahead, in a time namespace."""
PATIENCE_S = 120.0
ROWS, MANY_ROWS, PAUSE_S = 16, 192, 0.003
CAUGHT_UP_S, CATCHING_UP_S = 0.5, 6.0
SAE = {"architecture": "topk", "d_sae": 128, "k": 16, "batch_rows": 256, "buffer_rows": 2048,
       "min_buffer_fill_ratio": 0.1, "threads": 1, "checkpoint_interval_s": 5}  # fmt: skip
TRAINER = {"kind": "sae_trainer", "options": {"max_lag_s": 30, "sae": SAE}}
BASE = {
    "extends": "profile_consumer.yaml",
    "bus": {"backend": "cpp_spmc", "capacity_mib": 32},
    "resources": {"worker_nice": 0},
    "watchdog": {"heartbeat_timeout_s": 60, "startup_timeout_s": 180},
    "run": {"drain_timeout_s": 20},
}


HELD = {"max_mib_in_flight": 4, "batch_mib": 1}
"""Of a forwarder that must drop while the receiver's machine is away for seconds."""


def condition(
    rtt_ms: float, *, loss: int = 0, mbit: float | None = None, rows: int = ROWS, away: str = "",
    held: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """away: how the receiver's machine goes away. held: options of the forwarder."""
    return {
        "rtt_ms": rtt_ms,
        "loss": loss,
        "mbit": mbit,
        "rows": rows,
        "away": away,
        "held": held or {},
    }


CONDITIONS: dict[str, dict[str, Any]] = {
    "1ms": condition(1),
    "10ms": condition(10),
    "100ms": condition(100),
    "loss": condition(10, loss=1),
    "200mbit": condition(10, mbit=200, rows=MANY_ROWS),
    # Hundreds of small batches are left without an answer.
    "half-open-100ms": condition(100, away="silence"),
    "partition": condition(10, rows=64, away="cut", held=HELD),
    "half-open": condition(10, rows=64, away="silence", held=HELD),
}
AWAY_S = 10.0
HOSTS_CPU, *OTHER_CPUS = sorted(os.sched_getaffinity(0))
"""Where a pinned training process computes, and everything else."""


def impose(network: Network, told: dict[str, Any]) -> None:
    """This condition from now on, and nothing of the one before."""
    network.delay(told["rtt_ms"])
    for node in network.nodes.values():
        node.hear()
        node.limit(told["mbit"])
        if told["loss"]:
            node.lose(told["loss"])


def pinned(command: Sequence[str]) -> list[str]:
    """Beside a pinned training process, where there are several CPUs."""
    return ["taskset", "-c", cpu_list(), *command] if OTHER_CPUS else list(command)


def cpu_list() -> str:
    return ",".join(map(str, OTHER_CPUS))


class Receiver:
    """`asys-run receive` on a machine; `ahead_s` moves its monotonic clock."""

    def __init__(
        self, node: Node, folder: Path, *, ahead_s: int = 0, pin: bool = False, name: str = "sae"
    ) -> None:
        self.folder, self.name = folder, name
        config = {**BASE, "sinks": {"trainer": TRAINER, "archive": None},
                  "run": {**BASE["run"], "dir": str(folder / "receivers")}}  # fmt: skip
        (folder / "trainers.yaml").write_text(yaml.safe_dump(config))
        inside = (
            ["unshare", "--time", "--monotonic", str(ahead_s), "--boottime", str(ahead_s)]
            if ahead_s
            else []
        )
        command = [
            *inside, sys.executable, "-P", "-m", "asys_bench.cli.run", "receive", "--config",
            str(folder / "trainers.yaml"), "--listen", f"0.0.0.0:{PORT}", "--advertise",
            f"{node.address}:{PORT}", "--keys", str(folder / "keys"), "--book", str(folder / "book"),
            "--name", name,
        ]  # fmt: skip
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = node.popen(pinned(command) if pin else command, stdout=log, stderr=log)

    @property
    def run_dir(self) -> Path:
        return self.folder / "receivers" / self.name

    def until_listening(self) -> None:
        until(lambda: b"listening at" in self.log.read_bytes(), "the receiver", self.process)

    def end(self) -> None:
        """In order; its last account is in the book then."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()


class Training:
    """A training process on a machine, with SAEs elsewhere (`remote`) or beside it."""

    def __init__(
        self, node: Node, folder: Path, name: str, *, remote: bool, rows: int, pin: bool = False,
        held: dict[str, Any] | None = None, launcher: Sequence[str] = (), env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.runs, self.rows = name, folder / "runs", rows
        config = {**BASE, "sinks": {**sinks(folder, remote, held or {}), "archive": {"options": {}}},
                  "run": {**BASE["run"], "name": name}}  # fmt: skip
        if pin:
            config["resources"] = {**BASE["resources"], "pinning": pinning()}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        script = [str(HOST), str(self.runs), str(folder / f"{name}.yaml"), str(PAUSE_S)]
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = node.popen(
                [*(launcher or (sys.executable,)), *script],
                env={"OMP_NUM_THREADS": "1", **(env or {})},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.run_dir = Path()

    def until_observing(self) -> None:
        self.run_dir = Path(self._line())

    def start(self, seconds: float) -> None:
        """Train for so long (so many steps under torchrun)."""
        self._tell(f"run {seconds:g} {self.rows}")

    def said(self) -> dict[str, float]:
        """The times of its steps."""
        found: dict[str, float] = json.loads(self._line())
        return found

    def train(self, seconds: float) -> dict[str, float]:
        self.start(seconds)
        return self.said()

    def end(self) -> int:
        """Steps that it made."""
        self._tell("end")
        steps = int(self.said()["steps"])
        code = self.process.wait(PATIENCE_S)
        if code:
            raise RuntimeError(f"{self.name} ended with {code}: {self.log.read_text()[-2000:]}")
        return steps

    def figures(self) -> RunFigures | None:
        """What its processes count now."""
        try:
            with attach_run(self.run_dir) as run:
                return figures_of(take_snapshot(run.page, None))
        except RunGoneError:
            return None

    def forwarder(self) -> RemoteFigures | None:
        """What its forwarder counts now."""
        figures = self.figures()
        return figures.remotes[0] if figures is not None and figures.remotes else None

    def is_connected(self) -> bool:
        one = self.forwarder()
        return one is not None and one.connected

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self.name} says nothing: {self.log.read_text()[-2000:]}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a launcher's ranks as well
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def pinning() -> Any:
    """The host on the first CPU and everything else on the others; none where there is one CPU."""
    if not OTHER_CPUS:
        return "none"
    return {"host": str(HOSTS_CPU), "services": cpu_list(), "workers": {"*": cpu_list()}}


def sinks(folder: Path, remote: bool, held: dict[str, Any]) -> dict[str, Any]:
    if not remote:
        return {"trainer": TRAINER}
    options = {"book": str(folder / "book"), "keys": str(folder / "keys"), "wait_s": 2.0,
               **held}  # fmt: skip
    return {"trainer": None, "remote": {"kind": "forwarder", "options": options}}


def until(
    holds: Callable[[], bool], what: str, process: subprocess.Popen[Any] | None = None,
    patience_s: float = PATIENCE_S,
) -> float:  # fmt: skip
    """Seconds until it held."""
    began = time.monotonic()
    while not holds():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() - began > patience_s:
            raise TimeoutError(f"{what}: not within {patience_s:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


def caught_up(training: Training) -> bool:
    """Its forwarder is connected, and what waits for an answer has waited for a moment only."""
    one = training.forwarder()
    return one is not None and one.connected and not one.unacknowledged_s > CAUGHT_UP_S


def make_keys(folder: Path) -> None:
    if asys_run(["keys", str(folder / "keys")]):
        raise RuntimeError("asys-run keys failed")


def measure(
    folder: Path, name: str, *, seconds: float, ahead_s: int = AHEAD_S, away_s: float = AWAY_S
) -> dict[str, Any]:
    """One condition from the first HELLO to the last account."""
    told = CONDITIONS[name]
    make_keys(folder)
    figures: dict[str, Any] = {"condition": name}
    with ExitStack() as stack:
        network = stack.enter_context(Network("host", "sae"))
        host, sae = network["host"], network["sae"]
        impose(network, told)
        figures["ping_ms"] = round(host.ping_ms(sae), 2)
        receiver = stack.enter_context(Receiver(sae, folder, ahead_s=ahead_s))
        receiver.until_listening()
        rows, held = told["rows"], told["held"]
        remote = stack.enter_context(
            Training(host, folder, "remote", remote=True, rows=rows, held=held)
        )
        remote.until_observing()
        until(remote.is_connected, "the connection", remote.process)
        remote.train(1.0)
        before = dropped(remote)
        remote.train(seconds)
        figures["dropped"] = difference(dropped(remote), before)
        if told["away"]:
            figures |= partition(network, remote, told["away"], away_s)
        until(lambda: caught_up(remote), "catching up")
        figures["steps"] = remote.end()
        receiver.end()
        return figures | accounts(folder, receiver, remote)


def partition(network: Network, remote: Training, how: str, away_s: float) -> dict[str, Any]:
    """The receiver's machine is away for so long while the host trains on; then it comes back."""
    before = dropped(remote)
    remote.start(away_s + CATCHING_UP_S)
    go_away(network["sae"], how)
    time.sleep(away_s)
    come_back(network["sae"], how)
    took_s = until(lambda: caught_up(remote), "catching up after healing")
    remote.said()
    return {
        "away_s": away_s,
        "caught_up_s": round(took_s, 2),
        "dropped_away": difference(dropped(remote), before),
    }


def go_away(node: Node, how: str) -> None:
    (node.cut if how == "cut" else node.silence)()


def come_back(node: Node, how: str) -> None:
    (node.heal if how == "cut" else node.hear)()


def accounts(folder: Path, receiver: Receiver, remote: Training) -> dict[str, Any]:
    """What both sides say at the end."""
    found: ClusterVerification = verify_cluster(str(folder / "book"), folder / "runs")
    check = found.check
    return {
        "problems": list(found.problems),
        "verdicts": sorted(str(one.verdict) for one in check.senders),
        "in_doubt": sum(one.doubt for one in check.senders),
        **{key: check.total(key) for key in ("taken", "acked", "accepted", "duplicates")},
        "dropped_in_all": check.dropped,
        "skipped": metrics(receiver.run_dir, "sae_skipped_packets"),
        "rows_reached_saes": metrics(receiver.run_dir, "sae_rows"),
    }


def metrics(run_dir: Path, name: str) -> int:
    """The last value of a counter in metrics.csv, over all its labels."""
    last: dict[str, str] = {}
    for line in (run_dir / "metrics.csv").read_text().splitlines():
        fields = line.split(",")
        if len(fields) > 4 and fields[3] == name:
            last["".join(fields[2:8])] = fields[-2]
    return sum(int(float(value)) for value in last.values())


def dropped(training: Training) -> dict[str, int]:
    one = training.forwarder()
    return dict(one.dropped) if one is not None else {}


def difference(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {
        reason: n - before.get(reason, 0) for reason, n in now.items() if n > before.get(reason, 0)
    }


# Two training machines of two ranks each, SAEs on a third.

RANKS = """\
for local in 0 1; do
  RANK=$((2 * NODE + local)) LOCAL_RANK=$local "$@" <&3 & pids="$pids $!"
done 3<&0
for pid in $pids; do wait "$pid" || exit; done
"""
"""What torchrun does on a node, without a process of its own that imports torch."""


def launcher(node: int, network: Network, *, torchrun: bool) -> tuple[list[str], dict[str, str]]:
    """Words before the script, and the environment, of a node's two ranks."""
    master, port = network["node0"].address, "29500"
    gloo = {"GLOO_SOCKET_IFNAME": "tun0", "TP_SOCKET_IFNAME": "tun0"}
    if torchrun:
        return [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node),
            "--nproc-per-node", "2", "--rdzv-id", "a-job", "--master-addr", master, "--master-port",
            port,
        ], gloo  # fmt: skip
    job = {"NODE": str(node), "GROUP_RANK": str(node), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
           "MASTER_ADDR": master, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "a-job"}  # fmt: skip
    return ["bash", "-c", RANKS, "ranks", sys.executable], {**gloo, **job}


def two_nodes(
    folder: Path, *, steps: int = 200, rtt_ms: float = 1.0, torchrun: bool = False
) -> dict[str, Any]:
    """One training over two machines, one receiver: one account, one report, one `top --cluster`."""
    make_keys(folder)
    with ExitStack() as stack:
        network = stack.enter_context(Network("node0", "node1", "sae", rtt_ms=rtt_ms))
        receiver = stack.enter_context(Receiver(network["sae"], folder))
        receiver.until_listening()
        trainings = []
        for n in range(2):
            words, env = launcher(n, network, torchrun=torchrun)
            one = Training(network[f"node{n}"], folder, f"node{n}", remote=True, rows=ROWS,
                           launcher=words, env=env)  # fmt: skip
            trainings.append(stack.enter_context(one))
        for one in trainings:
            one.until_observing()
            until(one.is_connected, f"the connection of {one.name}", one.process)
        first = trainings[0]
        first.train(steps)
        until(lambda: settled(folder, 4 * steps), "equal accounts")
        seen = shown(folder)
        first.end()
        for one in trainings[1:]:
            if code := one.process.wait(PATIENCE_S):
                raise RuntimeError(f"{one.name}: {code}: {one.log.read_text()[-3000:]}")
        receiver.end()
    found = verify_cluster(str(folder / "book"), folder / "runs")
    page = render_run(read_run(receiver.run_dir), (), {})
    return {
        "problems": list(found.problems),
        "verdicts": sorted(str(one.verdict) for one in found.check.senders),
        "hosts": sorted({one.sender[0] for one in found.check.senders}),
        **{key: found.check.total(key) for key in ("taken", "acked", "accepted")},
        "dropped": found.check.dropped,
        "top": seen,
        "report": " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", "", page, flags=re.S).split()),
        "sources": sorted({one.source for a in found.check.receivers for one in a.streams}),
        "rows_reached_saes": metrics(receiver.run_dir, "sae_rows"),
    }


def settled(folder: Path, packets: int) -> bool:
    """So many were taken, as the book says it, and what was acknowledged is what was accepted."""
    check = read_cluster(str(folder / "book")).check
    equal = all(one.verdict is Verdict.EQUAL for one in check.senders)
    return equal and check.total("taken") == packets


def shown(folder: Path) -> str:
    """What `asys-run top --cluster` shows."""
    view = run_top.ClusterView(str(folder / "book"))
    out = io.StringIO()
    Console(file=out, width=140, color_system=None).print(view.frame(140))
    return out.getvalue()


def main() -> int:
    if (why := missing()) is not None:
        print(why, file=sys.stderr)
        return 2
    broken = 0
    for name in sys.argv[1:] or [*CONDITIONS]:
        folder = Path(tempfile.mkdtemp(prefix=f"asys-network-{name}-"))
        try:
            figures = measure(folder, name, seconds=20.0)
        except (RuntimeError, TimeoutError) as error:
            figures = {"condition": name, "problems": [str(error)], "kept": str(folder)}
        else:
            shutil.rmtree(folder)
        broken += bool(figures["problems"])
        print(json.dumps(figures), flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
