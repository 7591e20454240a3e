"""The fork server of `process: forked`: imports everything once, then forks one child per round.

A line of JSON in (`timeout_s`, `spec`), a line out (the fields of `child.ProcessEnd`). It starts no
thread, so that a fork copies a whole process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from asys_bench.harness.measuring.child import await_end, end_group, keep_exit_codes
from asys_bench.harness.round import RoundSpec, run_round
from asys_bench.registry import registry


class _Current:
    """The round that is running."""

    pid = 0


def _terminate(number: int, frame: FrameType | None) -> None:
    """End the running round's whole process group, then this server."""
    if _Current.pid:
        end_group(_Current.pid)
    os._exit(0)


def serve() -> int:
    """Until standard input ends or SIGTERM comes."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's business
    keep_exit_codes()
    registry("backend").failures()
    registry("scenario").failures()
    with suppress(ImportError):  # an extra that is not installed
        # Rounds would import it after all plugins, each for itself, in more than a second.
        import stable_baselines3  # noqa: F401
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(RoundSpec(**json.loads(request["spec"])))
        _Current.pid = pid
        end = await_end(pid, float(request["timeout_s"]))
        _Current.pid = 0
        sys.stdout.write(json.dumps(asdict(end)) + "\n")
        sys.stdout.flush()
    return 0


def _child(spec: RoundSpec) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    log = os.open(Path(spec.folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        run_round(spec)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is this round's end and goes in its log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(serve())
