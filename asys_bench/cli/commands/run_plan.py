"""`asys-run plan`: which process will run on which CPUs, as a picture; or where those of a run do.

Exit codes: 0 there is a plan (and the kernel agrees) · 1 refused, or the kernel does not agree ·
2 the configuration, the run or the command line is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.config import load_config
from asys_bench.config.sections.resources import CpuPriority, IoPriority
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.system.cpu_lists import HIGHEST_CPU

EXAMPLES = (
    ("asys-run plan --config profile_hpc.yaml", "what would run where"),
    (
        "asys-run plan --config profile_hpc.yaml --set resources.pinning=none",
        "with another setting",
    ),
    ("asys-run plan --run runs/<run>", "what does run where"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """`--config` with `--set` and `--machine`, or `--run`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="plan for this configuration; start nothing")
    what.add_argument(
        "--run", metavar="RUN", help="a running run's directory: compare its plan with the kernel"
    )
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument(
        "--machine",
        metavar="DIR",
        help="plan for another machine: a folder with a copy of its /sys/devices/system",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Problems of the configuration raise ConfigError."""
    if arguments.run is not None:
        return _compare(Path(arguments.run), console)
    return _plan(arguments, console)


def _plan(arguments: argparse.Namespace, console: Console) -> int:
    from asys_bench.placement.gpus import planned_devices
    from asys_bench.placement.needs import needs_of
    from asys_bench.placement.picture import draw
    from asys_bench.placement.plan import make_plan
    from asys_bench.placement.topology import read_topology

    config = load_config(arguments.config, arguments.set).config
    resources = config.resources
    if arguments.machine is None:
        topology = read_topology()
    else:
        root = Path(arguments.machine)
        topology = read_topology(root, range(HIGHEST_CPU + 1))
        if not (root / "sys/devices/system/cpu/online").is_file():
            console.print(
                f"asys-run plan: {arguments.machine}: no sys/devices/system/cpu/online there",
                style="red",
                markup=False,
            )
            return EXIT_USAGE
    threads = resources.host_threads or _torch_threads()
    needs = needs_of(config, threads)
    plan = make_plan(topology, needs, resources.pinning, resources.numa)
    host_gpus = {0} if topology.gpus else set[int]()
    plan = planned_devices(plan, topology, needs, host_gpus)
    picture = draw(
        topology,
        plan,
        needs,
        console.width,
        nice=resources.worker_nice,
        cpu=resources.worker_cpu,
        io=resources.worker_io,
        host_gpus=host_gpus,
    )
    console.print(picture, crop=False)
    if any(need.device in ("auto", "cuda") for need in needs) and topology.gpus:
        console.print(
            "note     the host is taken to compute on cuda:0; a run looks where its model is",
            soft_wrap=True,
        )
    return EXIT_OK if plan.refusal is None else EXIT_FAILED


def _compare(run_dir: Path, console: Console) -> int:
    from asys_bench.placement.manager import (
        ResourceError,
        read_plan,
        readings_of,
    )
    from asys_bench.placement.picture import draw
    from asys_bench.placement.readback import differences
    from asys_bench.placement.topology import read_topology
    from asys_bench.rundir.attach import RunGoneError, attach_run

    try:
        plan, needs = read_plan(run_dir)
        run = attach_run(run_dir)
    except (ResourceError, RunGoneError) as error:
        return fail("asys-run plan", console, str(error), EXIT_USAGE)
    with run:
        readings = readings_of(run.page, memory=True)
    # Its own processes tell what the run may use; ours may be confined elsewhere.
    usable = frozenset[int]().union(*(reading.allowed for reading in readings.values()))
    resources = run.config.get("resources", {})
    picture = draw(
        read_topology(affinity=usable or None),
        plan,
        needs,
        console.width,
        nice=int(resources.get("worker_nice", 0)),
        cpu=CpuPriority(resources.get("worker_cpu", "normal")),
        io=IoPriority(resources.get("worker_io", "normal")),
        readings=readings,
    )
    console.print(picture, crop=False)
    found = differences(plan, readings)
    for difference in found:
        console.print(f"differs: {difference}", style="red", markup=False, soft_wrap=True)
    if not found:
        what = "as planned" if plan.pins else "nothing is pinned in this run"
        console.print(f"the kernel agrees: {what}", style="green")
    return EXIT_FAILED if found else EXIT_OK


def _torch_threads() -> int:
    """What torch would take by itself."""
    import torch

    return torch.get_num_threads()
