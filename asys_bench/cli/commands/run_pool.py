"""`asys-run pool`: receivers on a Ray cluster, which train SAEs on what hosts elsewhere send.

FILE is the receivers' configuration (as of asys-run receive) with a section `pool`: the address book, the
folder of keys, and groups of hooks with the CPUs and GPUs of each. The command runs on a node of the
cluster and leaves when all receivers listen; they stay. Ray starts those again whose node or process dies.

Exit codes: 0 done · 1 a receiver does not come up, or no pool is there · 2 the configuration, the command
line or the cluster is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.names import printable

RECEIVER_HOST = "host.kind=receiver"
_fail = partial(fail, "asys-run pool")


EXAMPLES = (
    ("asys-run pool --config trainers.yaml", "start them (again: see that they are there)"),
    ("asys-run pool --config trainers.yaml --status", "where each one is and what it has taken"),
    ("asys-run pool --config trainers.yaml --stop", "have them drain, write and leave"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """`--config`, `--set`, `--ray`, `--status`, `--stop`."""
    parser.add_argument("--config", required=True, metavar="FILE", help="the receivers' YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one field, e.g. --set pool.name=late-layers (repeatable)",
    )
    parser.add_argument(
        "--ray",
        default="auto",
        metavar="ADDRESS",
        help="the Ray cluster; auto: the one that this machine belongs to",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="show the receivers")
    what.add_argument("--stop", action="store_true", help="stop the pool")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Start, show or stop the pool."""
    from asys_bench.cluster import pool
    from asys_bench.cluster.ray_cluster import RayUnavailableError, joined
    from asys_bench.config import load_config

    config = load_config(arguments.config, [RECEIVER_HOST, *arguments.set]).config
    try:
        spec = pool.PoolSpec.of(config)
    except pool.PoolError as error:
        return _fail(console, str(error), EXIT_USAGE)
    try:
        with joined(arguments.ray) as ray:
            if arguments.status:
                found = pool.status(ray, spec.name)
            elif arguments.stop:
                found = pool.stop(ray, spec.name, spec.drain_s)
            else:
                found = pool.start(ray, spec, lambda one: console.print(_line(one), markup=False))
    except RayUnavailableError as error:
        return _fail(console, str(error), EXIT_USAGE)
    except pool.PoolError as error:
        return _fail(console, str(error), EXIT_FAILED)
    console.print(table(found))
    return EXIT_OK


def _line(one: Any) -> str:
    where = f" at {one.address} on {one.node}" if one.address else ""
    return printable(f"{one.group}: {one.state}{where}{f': {one.said}' if not where else ''}")


def table(receivers: Sequence[Any]) -> Table:
    """A line per receiver."""
    names = ("group", "state", "node", "address", "starts", "connections", "accepted", "says")
    shown = Table(*names, box=None)
    for one in receivers:
        figures: Mapping[str, Any] = one.figures or {}
        shown.add_row(
            *(escape(printable(str(text))) for text in (
                one.group, one.state, one.node, one.address, one.starts,
                figures.get("connections", "-"), figures.get("accepted", "-"),
                "" if one.address else one.said,
            ))
        )  # fmt: skip
    return shown
