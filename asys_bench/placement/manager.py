"""`ResourceManager`: the plan of one run, from its configuration to the proof that it is in force.

A plan that `auto` refuses, or a machine that forbids part of it, is said once with the fix, and the
run goes on unpinned. A map written by hand that cannot be had stops the run instead: it was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asys_bench.config.schema import MasterConfig
from asys_bench.contracts.run_files import PLAN_FILE, PLAN_SCHEMA
from asys_bench.contracts.stats import SlotField, StatsPage
from asys_bench.placement.apply import HostPin, preferring
from asys_bench.placement.gpus import planned_devices
from asys_bench.placement.needs import needs_of
from asys_bench.placement.plan import HOST, Need, Placement, Plan, make_plan
from asys_bench.placement.readback import Reading, differences, read_process
from asys_bench.placement.topology import Topology, read_topology
from asys_bench.system.files.below import read_json

log = logging.getLogger(__name__)


class ResourceError(RuntimeError):
    """A pinning map that cannot be had here; names the CPU and the fix."""


class ResourceManager:
    """Made in the host process before the model is built.

    Raises:
        ResourceError: `resources.pinning` is a map and cannot be had.
    """

    def __init__(
        self, config: MasterConfig, host_threads: int, topology: Topology | None = None
    ) -> None:
        resources = config.resources
        self.topology = topology or read_topology()
        self.needs: Sequence[Need] = needs_of(config, host_threads)
        self.plan: Plan = make_plan(self.topology, self.needs, resources.pinning, resources.numa)
        self._pin = HostPin(())
        if self.plan.refusal is not None:
            if self.plan.mode == "explicit":
                raise ResourceError(str(self.plan.refusal))
            log.warning("nothing is pinned: %s", self.plan.refusal)

    def place_on_gpus(self, host_gpus: Collection[int]) -> None:
        """Choose a device for each worker that wishes for one, now that the host's are known."""
        self.plan = planned_devices(self.plan, self.topology, self.needs, host_gpus)

    @property
    def devices(self) -> dict[str, dict[str, str]]:
        """Worker -> the device that was chosen for it, and why; kept in run.json."""
        return {
            name: {"device": placement.device, "why": placement.why}
            for name, placement in self.plan.placements.items()
            if placement.device
        }

    def pin_host(self) -> None:
        """Confine this process to its CPUs; `release` takes it back."""
        self._pin = pin_host(self.plan)

    @contextmanager
    def bus_memory(self) -> Iterator[None]:
        """Within the block this thread's new pages lie on the host's node: create the bus in it."""
        with preferring(self.plan.placement(HOST).node) as problem:
            if problem is not None:
                log.warning("the bus's memory is not bound to a node: %s", problem)
            yield

    def placements(self) -> dict[str, Any]:
        """What `LaunchSpec.placements` carries: every process but the host, as plain data."""
        return {
            name: placement.to_dict()
            for name, placement in self.plan.placements.items()
            if name != HOST and (placement.cpus or placement.device)
        }

    def check(self, page: StatsPage) -> list[str]:
        """Read the processes of a started run back and log where the kernel disagrees."""
        found = differences(self.plan, readings_of(page)) if self.plan.pins else []
        for difference in found:
            log.warning("pinning is not in force: %s", difference)
        return found

    def to_dict(self) -> dict[str, Any]:
        """What is kept as the run's plan.json."""
        return plan_to_dict(self.plan, self.needs)

    def release(self) -> None:
        """Give the host process its CPUs back. Idempotent."""
        self._pin.release()


def pin_host(plan: Plan) -> HostPin:
    """Confine this process to the host's CPUs of `plan`; says once what could not be done."""
    made = HostPin(plan.placement(HOST).cpus)
    for problem in made.problems:
        log.warning("the host is not pinned: %s", problem)
    return made


def readings_of(page: StatsPage, memory: bool = False) -> dict[str, Reading]:
    """Every live process of a run by name, as the kernel sees it."""
    found: dict[str, Reading] = {}
    for name, slot in page.slots():
        pid = slot.get(SlotField.PID)
        # The host's page tables may be huge, and reading them holds its memory lock.
        reading = read_process(pid, memory and name != HOST) if pid else None
        if reading is not None:
            found[name] = reading
    return found


def plan_to_dict(plan: Plan, needs: Sequence[Need]) -> dict[str, Any]:
    """A plan as plain data, with the processes it was made for."""
    return {
        "schema": PLAN_SCHEMA,
        "mode": plan.mode,
        "refusal": str(plan.refusal) if plan.refusal else None,
        "notes": list(plan.notes),
        "needs": [[need.name, need.role, need.threads] for need in needs],
        "placements": {name: p.to_dict() for name, p in plan.placements.items()},
    }


def read_plan(run_dir: Path) -> tuple[Plan, list[Need]]:
    """The plan that a run was started with.

    Raises:
        ResourceError: the run has none, or it is not readable.
    """
    path = run_dir / PLAN_FILE
    try:
        data = read_json(path, below=run_dir)
        if data["schema"] != PLAN_SCHEMA:
            raise ValueError(f"schema is {data['schema']!r}; this reads {PLAN_SCHEMA!r}")
        placements = {name: Placement.from_dict(one) for name, one in data["placements"].items()}
        needs = [Need(name, role, int(threads)) for name, role, threads in data["needs"]]
        return Plan(data["mode"], placements, tuple(data["notes"])), needs
    except (
        OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError
    ) as error:  # fmt: skip
        raise ResourceError(f"{path}: no plan can be read there ({error})") from error


class HostPlace:
    """Threads and CPUs of the observed process itself, until it closes. `own` or `join` once, then
    `release`."""

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
