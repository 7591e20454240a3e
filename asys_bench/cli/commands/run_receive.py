"""`asys-run receive`: take the packets of training nodes and run this node's sinks on them.

A receiver is a run whose model is elsewhere: trainers.yaml has sinks and monitors, and neither host nor
hooks. Training nodes send to it with a sink of kind forwarder. It prints its address as one line when it
listens, begins its run with the first forwarder that connects, goes on with the run of its name when it is
started again, and stops in order on SIGTERM or Ctrl-C.

Exit codes: as those of asys-run.
"""

from __future__ import annotations

import argparse

from rich.console import Console

EXAMPLES = (
    ("asys-run receive --config trainers.yaml", "for forwarders on this machine"),
    (
        "asys-run receive --config trainers.yaml --listen 0.0.0.0:0 --keys KEYS --book BOOK",
        "for those of other machines, found by the address book",
    ),
)


def add(parser: argparse.ArgumentParser) -> None:
    """Each option but --config and --set is one of host.options.receiver."""
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="YAML file with sinks and monitors"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="default 127.0.0.1:0, a free port")
    parser.add_argument(
        "--advertise", metavar="HOST[:PORT]", help="how training nodes reach it, for the book"
    )
    parser.add_argument("--name", metavar="NAME", help="what it and its run are called")
    parser.add_argument(
        "--hooks", nargs="+", metavar="GLOB", help="names of hooks that it takes (default: all)"
    )
    parser.add_argument("--job", metavar="JOB", help="the job whose packets it takes")
    parser.add_argument("--keys", metavar="DIR", help="keys as asys-run keys makes them")
    parser.add_argument("--book", metavar="BOOK", help="address book to be announced in")
    parser.add_argument(
        "--generation", metavar="N", type=int, help="number of its entry in the book"
    )
    parser.add_argument(
        "--lifeline-fd",
        metavar="N",
        type=int,
        help="stop when the other end of this pipe is closed",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one field (repeatable)",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """As `asys-run --config FILE` with the host that the options say."""
    from asys_bench.cli.run import main as start

    return start(command_line(arguments))


def command_line(arguments: argparse.Namespace) -> list[str]:
    """The arguments of `asys-run` that say the same."""
    import json

    name = arguments.name or "receiver"
    sets = ["host.kind=receiver", "run.resume=auto", f"run.id={json.dumps(name)}"]
    options = {
        "listen": arguments.listen,
        "advertise": arguments.advertise,
        "name": name,
        "job": arguments.job,
        "keys": arguments.keys,
        "book": arguments.book,
        "generation": arguments.generation,
        "lifeline_fd": arguments.lifeline_fd,
    }
    for option, value in options.items():
        if value is not None:
            sets.append(f"host.options.receiver.{option}={json.dumps(value)}")
    if arguments.book is not None:  # what it counts is beside its entry
        sets.append("monitors.cluster_status.kind=cluster_status")
    if arguments.hooks:
        sets.append(f"host.options.receiver.hooks={json.dumps(arguments.hooks)}")
    line = ["--config", arguments.config]
    for one in (*sets, *arguments.set):
        line += ["--set", one]
    return line
