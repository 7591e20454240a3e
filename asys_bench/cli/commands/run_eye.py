"""`asys-run eye`: a run, live or finished, as pages in a browser: figures, features, search, timeline.

The address that it prints has a token, which lets one in; it serves this machine alone. For a run on
another machine, `ssh -L 8700:127.0.0.1:8700 HOST asys-run eye RUN --port 8700`, and open the address here.
Pins, names and notes that you give to features are kept in the run's folder (eye.json); nothing else is
changed. Needs `pip install 'asys-i[eye]'`.

Exit codes: 0 ended by Ctrl-C · 143 by SIGTERM · 1 the port is taken · 2 there is no such run, or the extra
is missing.
"""

from __future__ import annotations

import argparse
import logging
from importlib.util import find_spec

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run

NEEDS = ("starlette", "uvicorn")


def add(parser: argparse.ArgumentParser) -> None:
    """RUN and `--port`."""
    add_run_argument(parser)
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="default: a free one")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        message = f"{' and '.join(missing)} not installed: pip install 'asys-i[eye]'"
        return fail("asys-run eye", console, message, EXIT_USAGE)
    try:
        run_dir = find_run(arguments.run).resolve()
    except RunGoneError as error:
        return fail("asys-run eye", console, str(error), EXIT_USAGE)
    from asys_bench.eye.serve import serve

    logging.basicConfig(format="asys-run eye: %(message)s", level=logging.WARNING)
    try:
        serve(run_dir, arguments.port, _announce)
    except OSError as error:
        return fail("asys-run eye", console, f"port {arguments.port}: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        pass
    return EXIT_OK


def _announce(address: str) -> None:
    print(f"open {address}\nCtrl-C ends it", flush=True)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return value
