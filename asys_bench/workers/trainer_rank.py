"""A rank of a trainer group other than 0: `python -m asys_bench.workers.trainer_rank SOCKET PARENT`.

Rank 0 (a worker, or `asys-run train`) starts it and tells it everything over the socket; see
`sae.group.processes`. Its log is rank 0's.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from asys_bench.system.liveness import signal_on_parent_death

log = logging.getLogger(__name__)


def main() -> None:
    """Serve until rank 0 closes the socket."""
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    signal_on_parent_death(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0's business
        signal.signal(number, signal.SIG_IGN)
    lines = _lines(channel)
    about = next(lines, None)
    if about is None:
        return
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s rank {about['rank']}: %(message)s",
    )
    try:
        _serve(channel, lines, about)
    except Exception as error:
        log.exception("rank %d failed", about["rank"])
        try:
            _say(channel, {"error": f"{type(error).__name__}: {error}"})
        except OSError:
            log.error("rank 0 is gone")
        logging.shutdown()
        os._exit(1)
    logging.shutdown()
    os._exit(0)  # no destructors: the others are gone, and would be waited for


def _serve(channel: socket.socket, lines: Iterator[dict[str, Any]], about: dict[str, Any]) -> None:
    from asys_bench.placement.apply import settle
    from asys_bench.placement.plan import Placement

    place = Placement.from_dict(about["place"])
    for problem in settle(place):
        log.warning("%s", problem)
    import torch

    from asys_bench.sae.group.distributed import DistributedRanks
    from asys_bench.sae.group.serve import ServingRank
    from asys_bench.sae.training.device import open_device, prepare_process

    torch.set_num_threads(int(about["threads"]))
    prepare_process()
    device = open_device(place.device or "cpu", about["place"].get("most_bytes"))
    if place.device:
        log.info("computes on %s: %s", device.name, place.why)
    _say(channel, {"hello": about["rank"]})
    if next(lines, None) is None:  # `connect`
        return
    ranks = DistributedRanks(
        about["rank"],
        about["size"],
        about["split"],
        backend=about["backend"],
        device=device.tensors,
    )
    ranks.connect(f"/proc/self/fd/{about['store']}")
    ServingRank(ranks, device, lambda answer: _say(channel, answer)).serve(lines)


def _lines(channel: socket.socket) -> Iterator[dict[str, Any]]:
    with channel.makefile("rb") as file:
        for line in file:
            yield json.loads(line)


def _say(channel: socket.socket, answer: dict[str, Any]) -> None:
    channel.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
