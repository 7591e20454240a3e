"""What `observe()` writes to standard error: up to three lines at its start and five at its end.

A thread writes them. The host never waits for a terminal or a pipe that nobody reads. A stream that is
closed or missing costs the lines and nothing else.
"""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from asys_bench.config import MasterConfig
from asys_bench.contracts.run_files import REPORT_FILE, SUMMARY_FILE
from asys_bench.monitors.readable import (
    count_text,
    path_text,
    percent_text,
    plural,
    significant,
)
from asys_bench.placement.needs import crowding_of
from asys_bench.reports.run_summary.summary import RunSummary
from asys_bench.run.forecast import SaeForecast, size_text

PREFIX = "asys: "
FLUSH_S = 1.0
"""The start and the end wait for their lines this long."""
WIDTHS_S = 2.0
"""After the first hook has fired, the line about widths waits this long for the others."""
MOST = 3
"""Hooks, SAEs or warnings that are named; of more, their number."""
LITTLE_DISK_BYTES = 2 << 30
_END = object()


class StderrLines:
    """The lines of one observation. No method raises, and none waits but `flush` and `close`."""

    def __init__(self, quiet: bool = False) -> None:
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._widths: dict[str, int] = {}
        self._saes: list[SaeForecast] = []
        self._awaited: set[str] = set()
        self._due: float | None = None
        self._thread: threading.Thread | None = None
        if not quiet:
            self._thread = threading.Thread(target=self._run, name="asys-lines", daemon=True)
            self._thread.start()

    def write(self, *lines: str) -> None:
        """Write these lines, each after `PREFIX`."""
        if self._thread is not None and os.getpid() == self._pid:
            for line in lines:
                self._queue.put(PREFIX + line)

    def expect(self, hooks: Sequence[str]) -> None:
        """Write how wide the rows of these hooks are, once that is known."""
        self._awaited = set(hooks)

    def width_known(self, hook: str, width: int, saes: Sequence[SaeForecast]) -> None:
        """The rows of `hook` are `width` wide, which makes these SAEs; called in the host's hook."""
        if self._thread is not None:
            self._widths[hook] = width
            self._saes += saes
            self._queue.put(None)  # wakes the thread, which checks whether it was the last one

    def flush(self) -> None:
        """Wait until every line is written; at most `FLUSH_S`."""
        if self._thread is not None and os.getpid() == self._pid:
            written = threading.Event()
            self._queue.put(written)
            written.wait(FLUSH_S)

    def close(self) -> None:
        """Write what is queued and end the thread. Idempotent."""
        self.flush()
        if self._thread is not None and os.getpid() == self._pid:
            self._queue.put(_END)
            self._thread = None

    def _run(self) -> None:
        while True:
            wait_s = None if self._due is None else max(0.0, self._due - time.monotonic())
            try:
                item = self._queue.get(timeout=wait_s)
            except queue.Empty:
                self._write_widths()
                continue
            if item is _END:
                return
            if isinstance(item, threading.Event):
                item.set()
            elif item is not None:
                _write(str(item))
            elif self._awaited <= set(self._widths):
                self._write_widths()
            elif self._due is None and self._awaited:
                self._due = time.monotonic() + WIDTHS_S

    def _write_widths(self) -> None:
        self._due = None
        if self._awaited:
            self._awaited = set()
            _write(PREFIX + widths_line(self._widths, self._saes))


def _write(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001 - closed, gone, full, or a notebook's own: no line is worth an error
        return


def opening_lines(
    model: str, run_dir: Path, hooks: Sequence[str], config: MasterConfig
) -> list[str]:
    """What is known when the hooks are attached: where, what, and what to look out for."""
    lines = [
        f"observing {model} at {named(hooks, 'hook')}; files in {path_text(run_dir)} (quiet=True: no lines)"
    ]
    found = (crowding_of(config, "torch.set_num_threads({})"), _disk(run_dir))
    advice = [text for text in found if text is not None]
    return [*lines, *(["; ".join(advice)] if advice else [])]


def widths_line(widths: Mapping[str, int], saes: Sequence[SaeForecast]) -> str:
    """Hooks with the width of their rows, the features of their SAEs, and memory."""
    groups: dict[str, list[str]] = {}
    memory = 0
    of_hook = {sae.hook for sae in saes}
    for sae in saes:
        if sae.size is None:
            groups.setdefault("cannot be trained", []).append(sae.label)
            continue
        memory += sae.size.memory_bytes
        groups.setdefault(f"d_in {sae.size.d_in}, d_sae {sae.size.d_sae}", []).append(sae.label)
    for hook, width in widths.items():
        if hook not in of_hook:
            groups.setdefault(f"d_in {width}", []).append(hook)
    shapes = [f"{named(names)}: {what}" for what, names in groups.items()]
    more = [f"and {len(shapes) - MOST} more shapes"] if len(shapes) > MOST else []
    total = [f"{size_text(memory)} of memory for the SAEs"] if memory else []
    return "; ".join([*shapes[:MOST], *more, *total])


def closing_lines(summary: RunSummary, run_dir: Path) -> list[str]:
    """Packets, SAEs, warnings, where everything is, what to type."""
    host = summary.host
    steps = f"{count_text(host.steps)} {plural(host.step_unit)} in {host.seconds:.1f} s"
    lines = [f"{steps}, {_packets(summary)}"]
    saes = [
        f"{sae.hook}: {count_text(sae.rows)} rows, FVU {_number(sae.fvu)}, "
        f"{percent_text(sae.dead_ratio) if sae.dead_ratio is not None else 'unknown share'} dead"
        for sae in summary.saes
    ]
    if saes:
        more = [f"{len(saes) - MOST} more SAEs in {SUMMARY_FILE}"] if len(saes) > MOST else []
        lines.append("; ".join([*saes[:MOST], *more]))
    warnings = [f"! {warning}" for warning in summary.warnings[:MOST]]
    if len(summary.warnings) > MOST:
        warnings.append(f"! {len(summary.warnings) - MOST} more warnings in {SUMMARY_FILE}")
    lines += warnings or ["no warnings"]
    folder = path_text(run_dir)
    total = size_text(sum(entry.nbytes for entry in summary.files))
    written = any(entry.path == REPORT_FILE for entry in summary.files)
    report = f"report: {folder}/{REPORT_FILE}" if written else f"report: asys-run report {folder}"
    lines.append(f"{total} in {folder}")
    lines.append(f"{report}; in Python: asys_bench.open_run({folder!r})")
    return lines


def _packets(summary: RunSummary) -> str:
    bus = summary.bus
    if bus is None:
        return "the account of packets could not be read"
    verdict = "every one accounted for" if summary.balanced else "NOT all accounted for"
    dropped = f", {bus.dropped_total:,} dropped" if bus.dropped_total else ""
    return f"{count_text(bus.produced)} packets, {verdict}{dropped}"


def _number(value: float | None) -> str:
    return "-" if value is None else significant(value)


def named(names: Sequence[str], unit: str = "") -> str:
    """The names, or the first of them and their number."""
    if len(names) <= MOST:
        return ", ".join(names)
    return f"{', '.join(names[:MOST])} ... ({len(names)}{f' {plural(unit)}' if unit else ''})"


def _disk(run_dir: Path) -> str | None:
    try:
        free = shutil.disk_usage(run_dir).free
    except OSError:
        return None
    if free >= LITTLE_DISK_BYTES:
        return None
    return f"{size_text(free)} are free where {path_text(run_dir)} is: the archive may fill it"
