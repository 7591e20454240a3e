"""What a run's own process does for its trackers (monitor `tracker`): the rest is the monitor's.

At the start: which wandb run the host has of its own stands in run.json, and a link to ours in that run's
summary. At the end of `asys-run`: summary and report are sent by a process of their own (`asys-run track`),
for a bounded time, and whatever becomes of it the run has ended as it did.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asys_bench.config import MasterConfig
from asys_bench.contracts.exit_codes import EXIT_OK
from asys_bench.monitors.tracker.tracker import KIND, HostRun, own_id

log = logging.getLogger(__name__)
LINK = "asys/run"
"""Entry of the summary of the host's wandb run."""
ENDING_S = 30.0


def host_trackers(
    config: MasterConfig, run_id: str, began_unix_ns: int | None
) -> dict[str, dict[str, Any]]:
    """For run.json: the host's own wandb run, which gets a link to ours. Empty where the run has no tracker
    at wandb, or the host no wandb run."""
    if not _sections(config, "wandb"):
        return {}
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return {}
    try:
        found = _read(run)
        run.summary[LINK] = link_to(found, own_id(run_id, began_unix_ns))
    except Exception as error:  # noqa: BLE001 - the host's run is another package's; ours goes on beside it
        log.warning("the host's wandb run is not linked: %s: %s", type(error).__name__, error)
        return {}
    return {"wandb": asdict(found)}


def link_to(host: HostRun, own: str) -> str:
    """Where our run is seen, beside the host's."""
    if host.shared:
        return host.link
    beside, found, _ = host.url.rpartition("/runs/")
    if found:
        return f"{beside}/runs/{own}"
    return "/".join(part for part in (host.entity, host.project, own) if part)


def _read(run: Any) -> HostRun:
    settings = run.settings
    offline = settings.mode in ("offline", "dryrun")
    return HostRun(
        id=str(run.id),
        entity=str(run.entity or ""),
        project=str(run.project or ""),
        group=str(run.group or ""),
        url="" if offline else str(run.url or ""),
        shared=settings.mode == "shared",
    )


def _sections(config: MasterConfig, service: str) -> list[Mapping[str, Any]]:
    """The sections of a tracker in the options of enabled monitors."""
    monitors = config.enabled_monitors.values()
    found = (one.options.get(service) for one in monitors if one.kind == KIND)
    return [section for section in found if section is not None]


def send_ending(config: MasterConfig, run_dir: Path, within_s: float = ENDING_S) -> str | None:
    """Let `asys-run track` send summary and report. What to say about it; None: the run has no tracker."""
    if not any(one.kind == KIND for one in config.enabled_monitors.values()):
        return None
    again = f"the trackers have no report of {run_dir}; send it with: asys-run track {run_dir}"
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "track", str(run_dir)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=within_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return again
    said = done.stdout.decode(errors="replace").strip().removeprefix("asys-run track: ")
    return said if done.returncode == EXIT_OK else f"{said}\n{again}".strip()
