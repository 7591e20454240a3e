"""A receiver as its keeper sees it: it listens, rewrites its file, and leaves when its lifeline is closed.

BEHAVIOUR in the environment: `listen` · `die` (exit code 3 at once) · `idle` (exit code 0 once it listens)
· `hang` (its file is not rewritten after the first time) · `busy` (it is not rewritten for QUIET_S after the
first time, nor before the last)
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--status", required=True, type=Path)
parser.add_argument("--name", default="stand-in")
parser.add_argument("--lifeline-fd", type=int, required=True)
arguments, _ = parser.parse_known_args()
behaviour = os.environ.get("BEHAVIOUR", "listen")
QUIET_S = 0.5


def write(**more: object) -> None:
    partial = arguments.status.with_suffix(".part")
    partial.write_text(json.dumps({"pid": os.getpid(), **more}))
    partial.replace(arguments.status)


if behaviour == "die":
    print("no such thing", file=sys.stderr)
    sys.exit(3)
arguments.status.parent.mkdir(parents=True, exist_ok=True)
write(connections=0, accepted=7)
print(f"receiver {arguments.name}: listening at tcp://127.0.0.1:7001", flush=True)
if behaviour == "idle":
    sys.exit(0)
if behaviour == "busy":
    time.sleep(QUIET_S)
while not select.select([arguments.lifeline_fd], [], [], 0.05)[0]:
    if behaviour != "hang":
        write(connections=1, accepted=7)
if behaviour == "busy":
    time.sleep(QUIET_S)
write(left=True, unix_ns=time.time_ns())
print("drained", flush=True)
