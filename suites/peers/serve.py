"""The two processes of one contender of the bus comparison, kept from measurement to measurement.

    python -P suites/peers/serve.py NAME BYTES CPU CPU

Makes the transport and its consumer, says `ready`, and answers each line `PACKETS POOL_BYTES` on
standard input with the seconds that they took; the end of the input ends both. The producer pushes
rows of POOL_BYTES of random payloads. The consumer sums every 64-bit word with numpy and checks the
count, and the clock stops when it says so. `pairs.py` is what calls this.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

sys.path.append(str(Path(__file__).parent))

from contender import Contender, sources
from transports import CONTENDERS

READY, DONE, MISSING = "ready", "done", "missing"
PR_SET_PDEATHSIG = 1


def pin(cpu: int) -> None:
    """This thread alone: what a library has started already keeps all CPUs."""
    if cpu >= 0:
        os.sched_setaffinity(0, {cpu})


def die_with_the_producer() -> None:
    """A consumer whose producer was killed would wait for ever."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Consumer:
    """A consumer process: told a number of packets, it says when it has read them."""

    def __init__(self, orders: IO[str], answers: IO[str], wait: Callable[[], object]) -> None:
        self._orders, self._answers, self._wait = orders, answers, wait

    def begin(self, packets: int) -> None:
        print(packets, file=self._orders, flush=True)

    def expect(self, word: str) -> None:
        if (said := self._answers.readline().strip()) != word:
            raise SystemExit(f"the consumer said {said!r} instead of {word!r}")

    def close(self) -> None:
        self._orders.close()
        self._wait()


def follow(contender: Contender, orders: Iterator[str], say: Callable[[str], object]) -> None:
    """The consumer's life."""
    die_with_the_producer()
    say(READY)
    for line in orders:
        packets = int(line)
        if contender.consume(packets) != packets:
            raise SystemExit(f"{packets} packets were sent, others came")
        say(DONE)


def forked(contender: Contender, cpu: int) -> Consumer:
    """Of a transport that is inherited."""
    orders, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(orders[1])
        pin(cpu)
        with os.fdopen(orders[0]) as source, os.fdopen(answers[1], "w") as sink:
            orders_in = iter(source.readline, "")
            follow(contender, orders_in, lambda word: print(word, file=sink, flush=True))
        os._exit(0)
    os.close(orders[0])
    os.close(answers[1])
    return Consumer(os.fdopen(orders[1], "w"), os.fdopen(answers[0]), lambda: os.waitpid(pid, 0))


def started(
    name: str, nbytes: int, data: dict[str, Any], fds: tuple[int, ...], cpu: int, group: int
) -> Consumer:
    """Of a transport that others attach to."""
    words = ["--consume", name, str(nbytes), str(cpu), str(group), json.dumps(data), *map(str, fds)]
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, *words],
        pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    return Consumer(process.stdin, process.stdout, process.wait)


def consume(name: str, nbytes: str, cpu: str, group: str, data: str, *fds: str) -> None:
    """`serve.py --consume`: the process that `started` starts."""
    contender = CONTENDERS[name](int(nbytes))
    contender.attach(json.loads(data), tuple(map(int, fds)), int(group))
    pin(int(cpu))
    follow(contender, iter(sys.stdin.readline, ""), lambda word: print(word, flush=True))


def produce(name: str, nbytes: int, cpus: tuple[int, int]) -> None:
    """The producer's life."""
    contender = CONTENDERS[name](nbytes)
    try:
        data, fds = contender.open()
    except ImportError as error:
        print(f"{MISSING} {error}", flush=True)
        return
    consumers = [
        forked(contender, cpus[1])
        if contender.inherited
        else started(name, nbytes, data, fds, cpus[1], group)
        for group in range(contender.groups)
    ]
    for consumer in consumers:
        consumer.expect(READY)
    pin(cpus[0])
    print(READY, flush=True)
    pools: dict[int, Any] = {}
    for line in iter(sys.stdin.readline, ""):
        packets, pool_bytes = map(int, line.split())
        if pool_bytes not in pools:
            pools[pool_bytes] = contender.payloads(sources(nbytes, pool_bytes))
        print(f"{measure(contender, consumers, packets, pools[pool_bytes]):.9f}", flush=True)
    for consumer in consumers:
        consumer.close()
    contender.close()


def measure(
    contender: Contender, consumers: list[Consumer], packets: int, payloads: list[Any]
) -> float:
    """Seconds from the first push until every consumer has read every packet."""
    for consumer in consumers:
        consumer.begin(packets)
    start = time.perf_counter()
    contender.produce(payloads, packets)
    for consumer in consumers:
        consumer.expect(DONE)
    return time.perf_counter() - start


def main() -> None:
    if sys.argv[1] == "--consume":
        consume(*sys.argv[2:])
        return
    name, nbytes, *cpus = sys.argv[1:]
    produce(name, int(nbytes), (int(cpus[0]), int(cpus[1])))


if __name__ == "__main__":
    main()
