"""What trackers are told of a run, from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asys_bench.contracts.run_files import began_unix_ns
from asys_bench.monitors.tracker.public_config import public_config
from asys_bench.monitors.tracker.tracker import About, HostRun, own_id, read_tracked


def about_run(
    run_dir: Path, document: Mapping[str, Any], service: str, config: Mapping[str, Any]
) -> About:
    """Of the run in `run_dir` for one tracker. document: its run.json."""
    theirs = document.get("trackers")
    host = theirs.get("wandb") if isinstance(theirs, dict) else None
    run_id = str(document["run_id"])
    return About(
        run_id=run_id,
        own_id=own_id(run_id, began_unix_ns(document)),
        step_unit=str(document.get("step_unit", "step")),
        config=public_config(config),
        known=read_tracked(run_dir, service),
        host=HostRun.from_plain(host),
    )
