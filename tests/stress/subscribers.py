"""Readers of one run that come and go by chance, for test_subscribers.py:

    python subscribers.py RUN_DIR COMINGS AT_ONCE SEED        prints what became of them, as JSON

One process imports everything and forks a reader for each coming; it has no thread. A reader joins (or
is refused), reads some samples and then leaves, waits to be killed, or is stopped first; some are killed
at a moment of no choosing, while they join.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

from asys_bench.contracts.bus import BusError
from asys_bench.registry import registry
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.subscribe import subscribe

SAMPLES, REFUSED = 3, 3
PATIENCE_S = 60.0
HOLD_S = (0.0, 0.3)
MODES = ("leave", "kill", "stop", "early")


@dataclass
class Reader:
    pid: int
    mode: str
    news: int
    due: float
    stopped: bool = False


def read(run_dir, mode, out):
    """In the child: its exit code."""
    try:
        reader = subscribe(run_dir)
    except (BusError, ReadingError) as error:
        os.write(out, json.dumps({"refused": str(error)}).encode())
        return REFUSED
    if mode == "hold":
        os.write(out, b'{"read": 0}')
        signal.pause()
    got = [reader.get(PATIENCE_S) for _ in range(SAMPLES)]
    os.write(out, json.dumps({"read": sum(sample is not None for sample in got)}).encode())
    if mode != "leave":
        signal.pause()
    reader.close()
    return 0


class Crowd:
    def __init__(self, run_dir, seed):
        self.run_dir, self.random = run_dir, random.Random(seed)
        self.readers = []
        self.became = Counter()
        self.refusals = set()

    def come(self, mode):
        news, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = read(self.run_dir, mode, out)
            finally:
                os._exit(code)
        os.close(out)
        late = self.random.uniform(0.0, 0.3) if mode == "early" else PATIENCE_S
        self.readers.append(Reader(pid, mode, news, time.monotonic() + late))
        return self.readers[-1]

    def hear(self, reader):
        """Its one line; None when it died before."""
        line = os.read(reader.news, 4096)
        said = json.loads(line) if line else None
        if said and "refused" in said:
            self.refusals.add(said["refused"])
        return said

    def look(self):
        """Whatever is due; returns once something has happened or 20 ms are over."""
        waiting = [reader for reader in self.readers if reader.news >= 0]
        ready = select.select([reader.news for reader in waiting], [], [], 0.02)[0]
        now = time.monotonic()
        for reader in list(self.readers):
            if reader.news in ready:
                said = self.hear(reader)
                os.close(reader.news)
                reader.news = -1
                if said is None or "refused" in said or reader.mode == "leave":
                    self.end(reader, said)
                    continue
                assert said["read"] == SAMPLES, f"{said} of {reader}"
                reader.due = now
                if reader.mode == "stop":
                    os.kill(reader.pid, signal.SIGSTOP)
                    reader.due = now + self.random.uniform(*HOLD_S)
            if now >= reader.due:
                assert reader.news < 0 or reader.mode == "early", f"{reader} read nothing"
                os.kill(reader.pid, signal.SIGKILL)
                self.end(reader, {})

    def end(self, reader, said):
        if reader.news >= 0:
            os.close(reader.news)
        _, status = os.waitpid(reader.pid, 0)
        self.readers.remove(reader)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, REFUSED, -signal.SIGKILL), f"{reader}: {code} after {said}"
        self.became["refused" if code == REFUSED else reader.mode] += 1

    def fill(self):
        """Until one is refused: how many there is room for, and what the next is told."""
        inside = []
        while True:
            reader = self.come("hold")
            said = self.hear(reader)
            if "refused" in said:
                os.close(reader.news)
                reader.news = -1
                self.end(reader, said)
                break
            inside.append(reader)
        for reader in inside:
            os.kill(reader.pid, signal.SIGKILL)
            self.end(reader, {})
        return len(inside), said["refused"]


def main(run_dir, comings, at_once, seed):
    registry("backend").failures()
    crowd = Crowd(run_dir, seed)
    try:
        room, refusal = crowd.fill()
        crowd.became.clear()
        crowd.refusals.clear()
        left = comings
        while left or crowd.readers:
            while left and len(crowd.readers) < at_once:
                crowd.come(crowd.random.choice(MODES))
                left -= 1
            crowd.look()
        became = dict(crowd.became)
        again, _ = crowd.fill()
    finally:
        for reader in crowd.readers:
            os.kill(reader.pid, signal.SIGKILL)
    print(json.dumps({
        "room": room, "refusal": refusal, "room_after": again, "became": became,
        "refusals": sorted(crowd.refusals),
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
