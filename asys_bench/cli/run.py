"""`asys-run --config FILE`: train the configured host under observation. `asys-run COMMAND`: more.

Exit codes: 0 the run ended in order · 1 something failed (it says what) · 2 the configuration or
the command line is wrong · 130 ended by Ctrl-C · 143 ended by SIGTERM. Both signals end a run in
order, with its summary; a second one ends it at once. After SIGTERM the process is gone within
`run.drain_timeout_s`, also where the host does not leave its loop.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from asys_bench.cli.commands import Commands, add_version
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.run_files import CONFIG_FILE, LOGS_DIR, SUMMARY_FILE
from asys_bench.run.process_state import SignalHandlers, log_lines

if TYPE_CHECKING:  # `asys-run --help` waits for none of them
    from rich.console import Console

    from asys_bench.config import LoadedConfig
    from asys_bench.reports.run_summary.summary import RunSummary
    from asys_bench.run.experiment import ExperimentPipeline
    from asys_bench.run.lifecycle import RunOutcome
    from asys_bench.run.storage import Sent

REPORT_S = 60.0
"""Longest wait for the report at the end of a run; it takes a few seconds."""
SHOW_CURSOR = b"\x1b[?25h"
COMMANDS = Commands(
    "asys-run",
    (
        *(
            "init",
            "train",
            "evaluate",
            "export",
            "plan",
            "top",
            "eye",
            "names",
            "report",
            "timeline",
            "diff",
            "verify",
            "pin",
        ),
        *("upload", "track", "push", "receive", "pool", "keys", "completion"),
    ),
    "run_",
)
EXAMPLES = (
    ("asys-run --config demo.yaml", "PPO on CartPole with an SAE, about half a minute"),
    ("asys-run top", "watch it from another terminal"),
    ("asys-run report", "what each feature of the newest run fires on, as one page"),
)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `asys-run`."""
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    if not argv:
        parser.print_help()
        return EXIT_USAGE
    if not argv[0].startswith("-"):
        if argv[0] in COMMANDS.names:
            return COMMANDS.run(argv)
        parser.error(f"{COMMANDS.unknown(argv[0])}; to start a run: asys-run --config FILE")
    arguments = parser.parse_args(argv)
    if arguments.config is None and arguments.resume is None:
        parser.error("give --config FILE, or --resume RUN")
    return _start(arguments)


def build_parser() -> argparse.ArgumentParser:
    """What starts a run: every option without a command."""
    parser = argparse.ArgumentParser(
        prog="asys-run",
        usage="asys-run (--config FILE | --resume RUN) [--set PATH=VALUE] [--check] [--print-config]\n"
        "       asys-run COMMAND ...",
        description="Train the configured host while SAEs are trained on its activations.",
        epilog=COMMANDS.page(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of a shipped one")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with this run (a directory, an id under runs/, or the URI of its copy in a store), with "
        "its own configuration or with --config; --set changes what may change",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override one field, e.g. --set bus.backend=mp_queue (repeatable)",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration, run nothing")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the resolved configuration with the origin of each value, run nothing",
    )
    add_version(parser)
    return parser


def _start(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from asys_bench.system.standard_fds import take_standard_fds

    take_standard_fds()  # for good: no file of the run's may become standard output
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for the process's life
    from asys_bench.config import ConfigError, dump_yaml, load_config
    from asys_bench.run.from_store import NotBroughtError
    from asys_bench.rundir.attach import RunGoneError

    console = Console(stderr=True, highlight=False)
    try:
        with log_lines("asys-run: %(message)s"):
            config, sets = _sources(arguments)
        loaded = load_config(config, sets)
    except (RunGoneError, NotBroughtError) as error:
        console.print(f"asys-run: {error}", style="red", markup=False, soft_wrap=True)
        return EXIT_USAGE
    except ConfigError as error:
        console.print(str(error), style="red", markup=False)
        return EXIT_USAGE
    if arguments.print_config:
        sys.stdout.write(dump_yaml(loaded.config, loaded.provenance))
        return EXIT_OK
    from asys_bench.run.attempts import bring_missing, preview
    from asys_bench.run.preflight import preflight
    from asys_bench.run.storage import storage_problems

    with log_lines("asys-run: %(message)s"):
        problems = [*preflight(loaded), *storage_problems(loaded)]
        try:
            if not problems and not arguments.check:
                bring_missing(loaded.config)  # before a host is built for nothing
        except NotBroughtError as error:
            console.print(f"asys-run: {error}", style="red", markup=False, soft_wrap=True)
            return EXIT_FAILED
        problems += preview(loaded)
    if problems:
        console.print(str(ConfigError(problems)), style="red", markup=False, soft_wrap=True)
        return EXIT_USAGE
    if arguments.check:
        files = " <- ".join(str(path) for path in reversed(loaded.sources))
        print(f"{files}: valid")
        return EXIT_OK
    return _Command(loaded, console).run()


def _sources(arguments: argparse.Namespace) -> tuple[str | Path, list[str]]:
    """The configuration file and the overrides; of a run that goes on, its own and its place.

    Raises:
        RunGoneError: there is no such run. NotBroughtError: it is not had from its store.
        ConfigError: --config cannot be used.
    """
    from asys_bench.rundir.attach import find_run
    from asys_bench.store.uri import is_uri

    if arguments.resume is None:
        return arguments.config, arguments.set
    if is_uri(arguments.resume):
        return _stored_sources(arguments)
    path = find_run(arguments.resume).resolve()
    return arguments.config or path / CONFIG_FILE, [
        *arguments.set, "run.resume=require", *_place(path)
    ]  # fmt: skip


def _place(path: Path) -> list[str]:
    return [f"run.id={path.name}", f"run.dir={path.parent}"]


def _stored_sources(arguments: argparse.Namespace) -> tuple[str | Path, list[str]]:
    """The same of the URI of a copy: its run is brought here, unless nothing is to be run."""
    from asys_bench.config import load_config
    from asys_bench.run.from_store import bring
    from asys_bench.rundir.attach import find_run

    uri, given = arguments.resume, arguments.set
    # With `auto`, what the copy lacks begins anew.
    sets = ["run.resume=require", f"storage.uri={uri}", *given]
    if arguments.check or arguments.print_config:
        return arguments.config or find_run(uri, copies=True) / CONFIG_FILE, sets
    parent = next((Path(one[8:]) for one in reversed(given) if one.startswith("run.dir=")), None)
    if parent is None and arguments.config is not None:
        parent = load_config(arguments.config, given).config.run.dir
    path = bring(uri, parent, strict="run.resume=auto" not in given).resolve()
    return arguments.config or path / CONFIG_FILE, [*sets, *_place(path)]


HOST_SHARE = 0.5
"""Share of `run.drain_timeout_s` that a host has after SIGTERM to leave its loop; then it is left."""
WRITE_S = 0.5
"""Kept of it for run.json and the summary."""


class _Deadline:
    """After SIGTERM the process is gone within `run.drain_timeout_s`, whatever its host is at.

    leave: ends the run beside the host, which is in its loop still; given the seconds that are left.
    """

    def __init__(self, drain_s: float, leave: Callable[[float], None]) -> None:
        self._drain_s, self._leave = drain_s, leave
        # It needs no descriptor: a host may close all that it finds.
        self._over: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asked_at: float | None = None
        self._ending = threading.Lock()
        threading.Thread(target=self._watch, name="asys-deadline", daemon=True).start()

    def begin(self) -> None:
        """In a signal handler: no locks (SimpleQueue.put is reentrant)."""
        self._asked_at = time.monotonic()
        self._over.put(None)

    def host_has_left(self) -> None:
        """The main thread ends the run; it waits here for ever where that is under way already."""
        self._ending.acquire()
        self._over.put(None)

    @property
    def left_s(self) -> float | None:
        """None: nobody has asked."""
        if self._asked_at is None:
            return None
        return max(WRITE_S, self._asked_at + self._drain_s - WRITE_S - time.monotonic())

    def _watch(self) -> None:
        self._over.get()
        if self._asked_at is None:
            return
        time.sleep(HOST_SHARE * self._drain_s)
        if self._ending.acquire(blocking=False):
            self._leave(self.left_s or WRITE_S)


class _Command:
    """One `asys-run`, with its signals."""

    def __init__(self, loaded: LoadedConfig, console: Console) -> None:
        self._loaded, self._console = loaded, console
        self._pipeline: ExperimentPipeline | None = None
        self._signal: int | None = None
        """The first one; it decides the exit code."""
        self._running = False
        self._deadline: _Deadline | None = None

    def run(self) -> int:
        handlers = SignalHandlers((signal.SIGINT, signal.SIGTERM), self._on_signal)
        try:
            with log_lines("asys-run: %(message)s"):
                return self._run()
        finally:
            handlers.restore()

    def _run(self) -> int:
        from asys_bench.monitors.readable import path_text
        from asys_bench.placement.needs import crowding_of
        from asys_bench.run.experiment import ExperimentPipeline
        from asys_bench.run.preflight import place_of

        started = time.monotonic()
        if (crowded := crowding_of(self._loaded.config, "resources.host_threads={}")) is not None:
            self._console.print(f"asys-run: {crowded}", style="yellow", markup=False)
        self._pipeline = pipeline = ExperimentPipeline(
            self._loaded.config,
            terminal=sys.stdout.isatty(),
            provenance=self._loaded.provenance,
            announce=lambda path: print(f"run directory: {path_text(path)}", flush=True),
            on_eye=lambda address: self._console.print(
                f"eye: {address}", markup=False, soft_wrap=True
            ),
        )
        try:
            try:
                print("setting up: building the host, starting the workers ...", flush=True)
                pipeline.setup()
            except KeyboardInterrupt:
                pipeline.abort()
                self._console.print("asys-run: stopped before the host began")
                return self._interrupted()
            except (RuntimeError, ValueError, OSError) as error:
                pipeline.abort()
                place = place_of(self._loaded, error)
                where = f"{place}: " if place else "setup failed: "
                self._console.print(
                    f"asys-run: {where}{error}", style="red", markup=False, soft_wrap=True
                )
                return EXIT_USAGE if place else EXIT_FAILED
            return self._observe(pipeline, started)
        finally:
            pipeline.close()

    def _observe(self, pipeline: ExperimentPipeline, started: float) -> int:
        self._deadline = deadline = _Deadline(
            self._loaded.config.run.drain_timeout_s, self._leave_host
        )
        self._running = True
        failure: Exception | None = None
        try:
            pipeline.run()
        except Exception as error:  # noqa: BLE001 - the host is anyone's code; we still drain and report
            failure = error
        deadline.host_has_left()
        outcome = pipeline.shutdown(
            preempted=self._signal == signal.SIGTERM, within_s=deadline.left_s
        )
        self._report(pipeline, outcome, time.monotonic() - started, failure)
        if failure is None and self._signal is None:
            self._track(outcome.run_dir.path)
        code = self._verdict(outcome, failure, self._send_rest(outcome.run_dir.path, deadline))
        return EXIT_USAGE if code == EXIT_OK and self._misfits(pipeline.session.misfits) else code

    def _leave_host(self, left_s: float) -> None:
        from asys_bench.run.storage import not_all_sent

        assert self._pipeline is not None
        os.write(2, b"asys-run: the host does not leave its loop: the run ends without it\n")
        try:
            run_dir = self._pipeline.shutdown(preempted=True, within_s=left_s).run_dir.path
            if self._loaded.config.storage.uri is not None:
                os.write(2, f"asys-run: {not_all_sent(run_dir)}\n".encode(errors="replace"))
        finally:
            os._exit(self._interrupted())

    def _report(
        self,
        pipeline: ExperimentPipeline,
        outcome: RunOutcome,
        elapsed_s: float,
        failure: Exception | None,
    ) -> None:
        from rich.console import Console

        from asys_bench.monitors.readable import path_text
        from asys_bench.reports.run_summary.document import write_json
        from asys_bench.reports.run_summary.terminal import render_terminal

        run_dir = outcome.run_dir.path
        failed = failure is not None or bool(pipeline.session.misfits)
        summary = pipeline.life.summarise(
            outcome, elapsed_s, failed=failed, shown=Path(path_text(run_dir))
        )
        try:
            write_json(summary, run_dir)
        except OSError as error:
            self._console.print(f"asys-run: no {SUMMARY_FILE}: {error}", style="red", markup=False)
        if failure is None and self._signal is None and pipeline.life.hooks:
            summary = self._with_report(summary, run_dir)
        console = Console(width=None if sys.stdout.isatty() else 100)
        console.print(render_terminal(summary, console.width), crop=False)  # commands stay whole

    def _with_report(self, summary: RunSummary, run_dir: Path) -> RunSummary:
        """The summary of a run whose report is written; as it was where that took too long."""
        from asys_bench.cli.commands.run_report import write_within
        from asys_bench.monitors.readable import path_text
        from asys_bench.reports.run_summary.document import list_files, write_json

        print("writing the report ...", flush=True)
        report = write_within(run_dir, REPORT_S)
        if report is None:
            message = f"no report within {REPORT_S:g} s: asys-run report {summary.run_dir}"
            self._console.print(
                f"asys-run: {message}", style="yellow", markup=False, soft_wrap=True
            )
            return summary
        summary = replace(summary, files=tuple(list_files(run_dir)), report=path_text(report))
        with suppress(OSError):  # said when it was written first
            write_json(summary, run_dir)
        return summary

    def _misfits(self, messages: Sequence[str]) -> bool:
        """Show what the widths of the rows have made impossible, with the settings' places."""
        from asys_bench.run.preflight import place_of_saes

        place = place_of_saes(self._loaded)
        for message in messages:
            self._console.print(
                f"asys-run: {place}: {message}", style="red", markup=False, soft_wrap=True
            )
        return bool(messages)

    def _track(self, run_dir: Path) -> None:
        """Summary and report to the run's trackers; whatever becomes of it, the run has ended as it did."""
        from asys_bench.run.trackers import send_ending

        said = send_ending(self._loaded.config, run_dir)
        if said is not None:
            print(said, flush=True)

    def _send_rest(self, run_dir: Path, deadline: _Deadline) -> Sent | None:
        """What is written when the workers have left; after SIGTERM in the time that is left."""
        from asys_bench.run.storage import send_rest

        sent = send_rest(self._loaded.config, run_dir, deadline.left_s)
        if sent is not None and sent.complete:
            print(sent.said, flush=True)
        return sent

    def _verdict(
        self, outcome: RunOutcome, failure: Exception | None, sent: Sent | None = None
    ) -> int:
        from asys_bench.monitors.readable import path_text

        problems = []
        if failure is not None:
            logging.getLogger("asys_bench.cli.run").error("the host failed", exc_info=failure)
            problems.append(f"the host raised {type(failure).__name__}: {failure}")
        if not outcome.orderly:
            problems.append(
                f"not every worker finished in order; see {path_text(outcome.run_dir.path)}/{LOGS_DIR}/"
            )
        for group, off in outcome.imbalances.items():
            problems.append(f"group {group}: {off:+d} packets unaccounted for")
        unsent = sent if sent is not None and not sent.complete else None
        if unsent is not None:
            self._console.print(
                f"asys-run: {unsent.said}", style="red", markup=False, soft_wrap=True
            )
        for problem in problems:
            self._console.print(f"asys-run: {problem}", style="red", markup=False, soft_wrap=True)
        if problems:
            return EXIT_FAILED
        if self._signal is not None:
            return self._interrupted()
        return EXIT_OK if unsent is None else EXIT_FAILED

    def _interrupted(self) -> int:
        """As a shell says it of a process that a signal ended."""
        return 128 + (self._signal or signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self._signal = self._signal is None, self._signal or number
        if not first and self._pipeline is not None:
            # No locks, no I/O buffers: the main thread may be inside anything.
            os.write(2, b"\nasys-run: ended at once; files up to the last flush are kept\n")
            self._pipeline.abort()
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)  # the live view hid it
            os._exit(self._interrupted())
        if not self._running:
            raise KeyboardInterrupt
        assert self._pipeline is not None
        if number == signal.SIGTERM and self._deadline is not None:
            self._deadline.begin()
        self._pipeline.request_stop()
        os.write(2, b"\nasys-run: stopping: draining and writing (once more to end at once)\n")


if __name__ == "__main__":
    sys.exit(main())
