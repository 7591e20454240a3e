"""`asys-run eye`: a run, live or finished, as pages in a browser: figures, features, search, timeline.

The address that it prints has a token, which lets one in; it serves this machine alone. For a run on
another machine, `ssh -L 8700:127.0.0.1:8700 HOST asys-run eye RUN --port 8700`, and open the address here.
Pins, names and notes that you give to features are kept in the run's folder (eye.json); nothing else is
changed. With --model the view Search runs a text that you type through that model, in a process of its own,
and lists the features that fire on it; the page says whether these are the weights that the run observed.
Needs `pip install 'asys-i[eye]'`. A run can start it by itself: `run.eye`, `observe(..., eye=True)`.

Exit codes: 0 ended by Ctrl-C · 143 by SIGTERM · 1 the port is taken · 2 there is no such run, or the extra
is missing.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from asys_bench.cli.commands import fail
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.eye.address import NoEyepieceError, check_installed, listen
from asys_bench.rundir.attach import RunGoneError, add_run_argument, find_run
from asys_bench.system.files.atomic import replace_file

DISPLAYS = ("WAYLAND_DISPLAY", "DISPLAY")
OPENED = "eye-open.html"
"""In the run's folder, for `OPEN_S`: leads a browser on to the address."""
OPEN_S = 30.0


EXAMPLES = (
    ("asys-run eye", "the newest run under runs/"),
    ("asys-run eye runs/<run> --port 8700", "at a port that ssh forwards"),
    (
        "asys-run eye runs/<run> --model models/SmolLM2-135M",
        "Search then takes a text that you type",
    ),
)


def add(parser: argparse.ArgumentParser) -> None:
    """RUN, `--port`, `--open`, `--model` and `--gguf-file`."""
    add_run_argument(parser)
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="default: a free one")
    parser.add_argument(
        "--open", action="store_true", help="open it in the browser, where there is a display"
    )
    parser.add_argument(
        "--model",
        help="folder, package:<name> or name on the hub of the model that the run observed, for typed texts",
    )
    parser.add_argument("--gguf-file", metavar="FILE", help="GGUF file of --model")


def main(arguments: argparse.Namespace, console: Console) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        check_installed()
        run_dir = find_run(arguments.run).resolve()
    except (NoEyepieceError, RunGoneError) as error:
        return fail("asys-run eye", console, str(error), EXIT_USAGE)
    if arguments.gguf_file and not arguments.model:
        return fail(
            "asys-run eye", console, "--gguf-file is a file of --model: give both", EXIT_USAGE
        )
    logging.basicConfig(format="asys-run eye: %(message)s", level=logging.WARNING)
    try:
        model = (arguments.model, arguments.gguf_file) if arguments.model else None
        _serve(run_dir, arguments.port, arguments.open, model)
    except OSError as error:
        return fail("asys-run eye", console, f"port {arguments.port}: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        pass
    return EXIT_OK


def _serve(
    run_dir: Path, port: int, in_browser: bool, model: tuple[str, str | None] | None
) -> None:
    with listen(port) as address:
        print(f"open {address.url}\nCtrl-C ends it", flush=True)
        from asys_bench.eye.serve import serve  # torch takes seconds

        if in_browser and any(os.environ.get(name) for name in DISPLAYS):
            with _in_browser(address.url, run_dir / OPENED):
                serve(run_dir, address, model=model)
        else:
            serve(run_dir, address, model=model)


@contextmanager
def _in_browser(url: str, path: Path) -> Iterator[None]:
    """Open `url` by way of a private file at `path`: everybody on this machine can read the arguments of a
    browser's process, and the token must not be among them."""
    page = (
        f'<!doctype html><meta http-equiv="refresh" content="0;url={url}"><a href="{url}">Go on</a>'
    )
    replace_file(path, page.encode(), sync=False)
    try:
        threading.Thread(target=_open, args=(path,), daemon=True).start()
        yield
    finally:
        path.unlink(missing_ok=True)


def _open(path: Path) -> None:
    with suppress(webbrowser.Error, OSError):
        webbrowser.open(path.as_uri())
    time.sleep(OPEN_S)
    path.unlink(missing_ok=True)  # SIGTERM comes past the other one


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return value
