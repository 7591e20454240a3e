"""What a configuration will start, before the model is built or any process exists."""

from __future__ import annotations

from asys_bench.config.schema import MasterConfig
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
        needs += [Need(f"{name}-{index}", "sink", threads) for index in range(sink.workers)]
    needs.append(Need(WATCHDOG, "service"))
    needs += [Need(f"monitor-{name}", "service") for name in config.enabled_monitors]
    return needs
