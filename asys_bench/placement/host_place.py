"""`resources` of an observation for the observed process itself: threads and CPUs, until it closes."""

from __future__ import annotations

from pathlib import Path

import torch

from asys_bench.config import MasterConfig
from asys_bench.placement.apply import HostPin
from asys_bench.placement.manager import ResourceManager, pin_host, read_plan


class HostPlace:
    """Where this process runs. `own` or `join` once, then `release`."""

    def __init__(self, config: MasterConfig) -> None:
        self._config = config
        self._pin: ResourceManager | HostPin | None = None
        self._threads: int | None = None

    def own(self, processes: int) -> ResourceManager:
        """Plan the node's processes and confine this one.

        processes: ranks on this node; they share the host's CPUs.

        Raises:
            ResourceError: `resources.pinning` is a map and cannot be had.
        """
        self._set_threads()
        manager = ResourceManager(self._config, torch.get_num_threads() * processes)
        self._pin = manager
        manager.pin_host()
        return manager

    def join(self, run_dir: Path) -> None:
        """Confine this rank as the owner of the run has planned it.

        Raises:
            ResourceError: the run has no plan.
        """
        self._set_threads()
        self._pin = pin_host(read_plan(run_dir)[0])

    def release(self) -> None:
        """Give the process back what it had before. Idempotent."""
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.release()
        threads, self._threads = self._threads, None
        if threads is not None:
            torch.set_num_threads(threads)

    def _set_threads(self) -> None:
        wanted = self._config.resources.host_threads
        if wanted is not None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(wanted)
