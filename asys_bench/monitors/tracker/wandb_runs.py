"""Weights & Biases.

Online, every attempt of a run goes on with one wandb run, whose id is made from the run's (`own_id`).
Offline runs cannot be gone on with: a second folder of one id would replace the first when it is synced. So
each process has a run of its own there, `<id>`, `<id>-2`, ..., all in one group; so has each of wandb's own
processes (`wandb-core`), when one was killed.

A host that has a wandb run of its own gets ours beside it: same project, same group, a link in both
summaries (`run.trackers`). A host's run in wandb's shared mode is joined: the points go to it, under `asys/`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from asys_bench.monitors.tracker.tracker import PROJECT, STEP, About, Point, TrackedRun, Tracker

HOSTS_LINK, JOINED = "host/wandb_run", "asys"
OFFLINE = ("offline", "dryrun")
_OF_THE_HOST = ("WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_NAME")
"""Variables by which wandb would take us for a part of the host's run."""
_QUIET: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Of this process nothing is worth keeping, and command lines and remotes may hold secrets."""


class WandbOptions(BaseModel, extra="forbid", frozen=True):
    """Section `wandb` of the tracker's options."""

    project: str | None = Field(
        None, max_length=128, description=f"null: that of the host's wandb run, else `{PROJECT}`"
    )
    entity: str | None = Field(
        None, max_length=128, description="user or team; null: that of the host's run, else yours"
    )
    group: str | None = Field(
        None,
        max_length=128,
        description="null: the group of the host's wandb run, or that run's id where it is in none",
    )
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="`offline` writes a folder for `wandb sync`; null: as WANDB_MODE or `wandb offline` say, "
        "else online",
    )


class WandbTracker(Tracker):
    """See the module."""

    service = "wandb"

    def __init__(self, options: WandbOptions) -> None:
        self._options = options
        self._run: Any = None
        self._prefix = ""

    def open(self, about: About) -> TrackedRun:
        for name in _OF_THE_HOST:
            os.environ.pop(name, None)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self._run is not None:
            _leave_process(wandb)
        offline = (self._options.mode or wandb.setup().settings.mode) in OFFLINE
        host, options = about.host, self._options
        settings = dict(_QUIET)
        chosen: dict[str, Any] = {
            "id": _next_id(about) if offline else about.own_id,
            "project": options.project or (host.project if host else PROJECT),
            "entity": options.entity or (host.entity if host else None) or None,
            "group": options.group or (host.group or host.id if host else about.own_id),
            "mode": options.mode,
            "resume": None if offline else "allow",
        }
        if host is not None and host.shared and not offline:
            chosen |= {"id": host.id, "mode": "shared", "group": None, "resume": None}
            chosen |= {"project": host.project, "entity": host.entity or None}
            settings |= {"x_primary": False, "x_label": JOINED, "x_update_finish_state": False}
            self._prefix = f"{JOINED}/"
        # A killed process and its successor may begin within one second.
        settings["x_sync_dir_suffix"] = str(os.getpid())
        known = {name: value for name, value in settings.items() if _has(wandb.Settings, name)}
        run = self._run = wandb.init(
            **chosen,
            name=None if self._prefix else about.run_id,
            job_type=None if self._prefix else JOINED,
            config={JOINED: {"run_id": about.run_id, "step_unit": about.step_unit, **about.config}},
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(**known),
        )
        # wandb drops rows whose own step is older than the last one's: a host that goes on makes steps again.
        step = f"{self._prefix}{STEP}"
        run.define_metric(step)
        run.define_metric(f"{self._prefix}*", step_metric=step)
        if host is not None and not self._prefix:
            run.summary[HOSTS_LINK] = host.link
        url = "" if offline else str(run.url or "")
        return TrackedRun(self.service, str(run.id), str(run.project), str(run.entity or ""), url)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            values = {f"{self._prefix}{name}": value for name, value in point.values.items()}
            step = {f"{self._prefix}{STEP}": point.step, f"{self._prefix}unix_s": point.unix_s}
            self._run.log(values | step)

    def attach(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update({f"{JOINED}/{name}": value for name, value in summary.items()})
        if not files:
            return
        artifact = wandb.Artifact(name=f"report-{self._run.id}", type="report")
        for file in files:
            artifact.add_file(str(file), name=file.name)
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        self._run.finish()


def _next_id(about: About) -> str:
    """Of an offline run: the first that no earlier process of this run has had."""
    if about.known is None or not about.known.id.startswith(about.own_id):
        return about.own_id
    number = about.known.id.removeprefix(about.own_id).lstrip("-")
    return f"{about.own_id}-{int(number) + 1 if number.isdecimal() else 2}"


def _leave_process(wandb: Any) -> None:
    """Let go of wandb's own process, which is gone or refuses: the next run gets a new one."""
    with suppress(Exception, SystemExit):  # it exits with the code of a process that was killed
        wandb.teardown()


def _has(settings: Any, name: str) -> bool:
    """Names that begin with `x_` may go in any version of wandb."""
    return name in settings.model_fields
