"""trackio: on this machine (TRACKIO_DIR), shown by `trackio show`. A point's own step is the host's: trackio
drops none that is older. What it prints goes to standard error: a run's standard output is the host's."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from asys_bench.monitors.tracker.tracker import PROJECT, STEP, About, Point, TrackedRun, Tracker


class TrackioOptions(BaseModel, extra="forbid", frozen=True):
    """Section `trackio` of the tracker's options."""

    project: str = Field(PROJECT, min_length=1, max_length=128, description="made where missing")
    group: str | None = Field(None, max_length=128, description="null: none")


class TrackioTracker(Tracker):
    """See the module."""

    service = "trackio"

    def __init__(self, options: TrackioOptions) -> None:
        self._options = options
        self._run: Any = None

    def open(self, about: About) -> TrackedRun:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        with redirect_stdout(sys.stderr):
            import trackio

            self._run = trackio.init(
                project=self._options.project,
                name=about.run_id,
                group=self._options.group,
                config={"asys": {"step_unit": about.step_unit, **about.config}},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
            )
        return TrackedRun(self.service, about.run_id, self._options.project)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(
                {**point.values, STEP: point.step, "unix_s": point.unix_s}, step=point.step
            )

    def attach(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            for file in files:
                trackio.save(str(file), project=self._options.project)

    def finish(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()
