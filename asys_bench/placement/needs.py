"""What a configuration will start, before the model is built or any process exists."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.launch import rank_name
from asys_bench.placement.plan import HOST, WATCHDOG, Need


def needs_of(config: MasterConfig, host_threads: int) -> list[Need]:
    """Every process by the name it will have.

    A partitioning sink starts at most one worker per hook; hooks are not known yet, so this is the
    most there can be.

    host_threads: torch threads of the host process.
    """
    threads = config.resources.worker_threads
    needs = [Need(HOST, "host", host_threads)]
    for name, sink in config.enabled_sinks.items():
        options = sink.plugin_options()
        device, shares = options.device_wish
        device = "" if device == "cpu" else device
        needs += [
            Need(rank_name(f"{name}-{index}", rank), "sink", threads, device, shares)
            for index in range(sink.workers)
            for rank in range(options.ranks)
        ]
    needs.append(Need(WATCHDOG, "service"))
    needs += [Need(f"monitor-{name}", "service") for name in config.enabled_monitors]
    return needs


def crowding_of(config: MasterConfig, remedy: str) -> str | None:
    """`crowding` of a run with this configuration in this process, and what helps.

    None also where CPUs are pinned: the plan has given the host its own.

    remedy: with {} for the number of threads.
    """
    if config.resources.pinning != "none":
        return None
    cores = len(os.sched_getaffinity(0))
    needs = needs_of(config, config.resources.host_threads or torch.get_num_threads())
    problem = crowding(needs, cores)
    if problem is None:
        return None
    return f"{problem}; try {remedy.format(room_for_host(needs, cores))}"


def crowding(needs: Sequence[Need], cores: int) -> str | None:
    """Why host and workers will wait for each other, as a sentence; None where they have room.

    One thread of the host is never too many: nothing could be changed about it.

    needs: of `needs_of`. cores: those that this process may use.
    """
    threads = next(need.threads for need in needs if need.name == HOST)
    workers = _worker_threads(needs)
    if not workers or threads <= room_for_host(needs, cores):
        return None
    cpus = f"{cores} CPU{'s' if cores > 1 else ''}"
    return (
        f"{threads} torch threads of the host and {workers} of the workers share {cpus}: a host of "
        "small steps waits for its own threads"
    )


def room_for_host(needs: Sequence[Need], cores: int) -> int:
    """Torch threads of the host that leave every worker a core of its own; at least one."""
    return max(1, cores - _worker_threads(needs))


def _worker_threads(needs: Sequence[Need]) -> int:
    return sum(need.threads for need in needs if need.role == "sink")
