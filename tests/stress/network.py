"""Machines of a cluster as network namespaces, and what goes wrong between them.

    with Network("host0", "host1", "sae", rtt_ms=10) as network:
        network["sae"].popen([...]); network["host0"].ping_ms("sae"); network["sae"].cut()

Delay is a relay's (`tun_relay.py`), rate `tc`'s, loss nftables', a partition a device that is down, a
half-open connection a rule that drops all. Each needs root; `missing` says what is not to be had here.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
PING = HERE / "icmp_ping.py"
_numbers = itertools.count()


@functools.cache
def missing() -> str | None:
    """Why there can be no such network here, and what to do; None: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables")):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt-get install {package})"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no /dev/net/tun here"
    name = f"asys-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace is to be had here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Node:
    """One machine: a network namespace with one link, to the relay."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        self.name, self.namespace, self.address = name, namespace, address
        self._is_limited = False

    @property
    def inside(self) -> list[str]:
        """What goes before a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace]

    def popen(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **how: Any
    ) -> subprocess.Popen[Any]:
        """A process of this machine."""
        return subprocess.Popen([*self.inside, *command], env={**os.environ, **(env or {})}, **how)

    def run(self, *command: str) -> str:
        """What `command` prints; it must succeed."""
        done = subprocess.run(
            [*self.inside, *command], capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def ping_ms(self, other: Node, times: int = 5, wait_s: float = 2.0) -> float:
        """Median round trip."""
        said = self.run(sys.executable, str(PING), other.address, str(times), str(wait_s))
        return statistics.median(float(line) for line in said.split())

    def limit(self, mbit: float | None) -> None:
        """What leaves goes at most this fast; None: unlimited."""
        if mbit is None:
            if self._is_limited:
                self.run("tc", "qdisc", "del", "dev", "tun0", "root")
            self._is_limited = False
            return
        rate = ("tbf", "rate", f"{mbit:g}mbit", "burst", "128kb", "latency", "100ms")
        self.run("tc", "qdisc", "replace", "dev", "tun0", "root", *rate)
        self._is_limited = True

    def lose(self, percent: int) -> None:
        """Of what arrives, so many packets in a hundred are dropped at random."""
        self._rule(f"numgen random mod 100 < {percent} drop")

    def silence(self) -> None:
        """Whatever arrives or leaves is dropped: connections stay, half-open, until somebody notices."""
        self._rule("drop", "drop")

    def hear(self) -> None:
        """No packet is dropped any more."""
        self.run("nft", "flush", "ruleset")

    def _rule(self, inwards: str, outwards: str | None = None) -> None:
        self.hear()
        lines = ["add table inet asys"]
        for hook, rule in (("input", inwards), ("output", outwards)):
            if rule is not None:
                lines += [
                    f"add chain inet asys {hook} {{ type filter hook {hook} priority 0; }}",
                    f"add rule inet asys {hook} iifname tun0 {rule}"
                    if hook == "input"
                    else f"add rule inet asys {hook} oifname tun0 {rule}",
                ]
        self.run("nft", "; ".join(lines))

    def cut(self) -> None:
        """The link is down: the kernel here knows it, the others do not."""
        self.run("ip", "link", "set", "tun0", "down")

    def heal(self) -> None:
        """The link is up again."""
        self.run("ip", "link", "set", "tun0", "up")


class Network:
    """Machines that reach each other through one relay. Leaving it ends the relay and the namespaces; who
    started processes in them ends those."""

    def __init__(self, *names: str, rtt_ms: float = 0.0) -> None:
        serial = next(_numbers)
        self.nodes = {
            name: Node(name, f"asys-{os.getpid()}-{serial}-{name}", f"10.77.{serial % 256}.{n}")
            for n, name in enumerate(names, 1)
        }
        self._rtt_ms = rtt_ms
        self._relay: subprocess.Popen[str] | None = None

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes.values():
                subprocess.run(["ip", "netns", "add", node.namespace], check=True)
            places = [f"{node.namespace}={node.address}" for node in self.nodes.values()]
            self._relay = subprocess.Popen(
                [sys.executable, str(HERE / "tun_relay.py"), str(self._rtt_ms), *places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._relay.stdout is not None
            if self._relay.stdout.readline() != "ready\n":
                raise RuntimeError("the relay did not start")
        except BaseException:
            self._end()
            raise
        return self

    @property
    def relay_pid(self) -> int:
        """Of the process that is the network."""
        assert self._relay is not None
        return self._relay.pid

    def delay(self, rtt_ms: float) -> None:
        """A packet and its answer together take so much longer from now on."""
        assert self._relay is not None
        assert self._relay.stdin is not None
        self._relay.stdin.write(f"{rtt_ms}\n")
        self._relay.stdin.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._relay is not None:
            assert self._relay.stdin is not None
            assert self._relay.stdout is not None
            self._relay.kill()
            self._relay.wait()
            self._relay.stdin.close()
            self._relay.stdout.close()
        for node in self.nodes.values():
            subprocess.run(["ip", "netns", "del", node.namespace], capture_output=True, check=False)
