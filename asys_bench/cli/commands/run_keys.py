"""`asys-run keys`: make the keys with which receivers and forwarders know each other.

DIR/receiver.secret stays on the receiver's node, with DIR/allowed, where the public keys of the clients are
that it lets in. DIR/client.secret, DIR/client.public and DIR/receiver.public go to the training nodes. No
key is ever overwritten; a client is locked out by deleting its file in DIR/allowed.

Exit codes: 0 made · 1 not written · 2 a name is there already, or is none.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE

_fail = partial(fail, "asys-run keys", None)


EXAMPLES = (
    ("asys-run keys keys", "for one client"),
    ("asys-run keys keys --client node-1 --client node-2", "for two, each with a name of its own"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """DIR, `--client`."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the keys are written")
    parser.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="NAME",
        help="a client's name (repeatable; default: client)",
    )


def main(arguments: argparse.Namespace, console: Console) -> int:
    """A line per file."""
    from asys_bench.cluster.keys import CLIENT, KeyFileError, make_keys, zmq_problem

    problem = zmq_problem()
    if problem is not None:
        return _fail(problem, EXIT_USAGE)
    try:
        written = make_keys(arguments.folder, arguments.client or [CLIENT])
    except KeyFileError as error:
        return _fail(str(error), EXIT_USAGE)
    except OSError as error:
        return _fail(str(error), EXIT_FAILED)
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)
    return EXIT_OK
