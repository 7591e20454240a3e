"""What a run's trackers get when it has ended: what it came to, and its report as an artifact.

Both are written when the run's workers have left, so this is a process of its own: `asys-run track RUN`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asys_bench.config.document import run_config_data
from asys_bench.contracts.run_files import REPORT_FILE, SUMMARY_FILE, read_run_file
from asys_bench.monitors.tracker.about import about_run
from asys_bench.monitors.tracker.plugin import TrackerOptions
from asys_bench.monitors.tracker.tracker import KIND
from asys_bench.system.files.below import is_file, read_json

_SECTIONS: dict[str, tuple[str, ...]] = {
    "host": ("steps", "seconds", "steps_per_s", "weights_version"),
    "bus": ("produced", "produced_bytes", "dropped_total"),
}
_LISTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hooks": ("hook", ("captured", "dropped", "latency_p50_us", "latency_p99_us")),
    "saes": ("sae", ("rows_trained", "fvu", "fvu_all", "l0", "dead_ratio")),
}
"""Section of summary.json -> what of it is sent; of lists also how an entry is called."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one tracker. url: where the run is seen; problem: why it got nothing."""

    service: str
    url: str = ""
    problem: str = ""


def tracker_options(config: Mapping[str, Any]) -> list[TrackerOptions]:
    """Of each enabled monitor `tracker` of a configuration as plain data; what is not valid is left out."""
    monitors = config.get("monitors")
    found = []
    for monitor in monitors.values() if isinstance(monitors, Mapping) else ():
        if not isinstance(monitor, Mapping) or monitor.get("kind") != KIND:
            continue
        if monitor.get("enabled", True):
            try:
                found.append(TrackerOptions.model_validate(monitor.get("options") or {}))
            except ValidationError:
                continue
    return found


def send_ending(run_dir: Path) -> Iterator[Ended]:
    """Send summary and report of the run to each of its trackers; nothing comes where it has none.

    Raises:
        RunFileError: there is no run.
    """
    config = run_config_data(run_dir)
    trackers = [tracker for options in tracker_options(config) for tracker in options.trackers()]
    if not trackers:
        return
    document = read_run_file(run_dir)
    summary, files = summary_of(run_dir), []
    if is_file(run_dir / REPORT_FILE, below=run_dir):
        files.append(run_dir / REPORT_FILE)
    for tracker in trackers:
        try:
            tracked = tracker.open(about_run(run_dir, document, tracker.service, config))
            tracker.attach(summary, files)
            tracker.finish()
        except Exception as error:  # noqa: BLE001 - each package has errors of its own
            yield Ended(tracker.service, problem=f"{type(error).__name__}: {error}")
        else:
            yield Ended(tracker.service, tracked.url)


def summary_of(run_dir: Path) -> dict[str, float | int | str | bool]:
    """The figures of summary.json by name (`sae/<hook>/fvu`); empty where there is none."""
    try:
        document = read_json(run_dir / SUMMARY_FILE, below=run_dir)
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict):
        return {}
    found: dict[str, Any] = {
        "outcome": document.get("outcome"),
        "balanced": document.get("balanced"),
    }
    found["elapsed_s"] = document.get("elapsed_s")
    for part, names in _SECTIONS.items():
        section = document.get(part)
        if isinstance(section, dict):
            found |= {f"{part}/{name}": section.get(name) for name in names}
    for part, (label, names) in _LISTS.items():
        for entry in _entries(document.get(part)):
            found |= {f"{label}/{entry['hook']}/{name}": entry.get(name) for name in names}
    return {name: value for name, value in found.items() if _is_figure(value)}


def _entries(section: Any) -> Iterator[dict[str, Any]]:
    for entry in section if isinstance(section, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("hook"), str):
            yield entry


def _is_figure(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int | str)
