"""What trackers are told of a run, from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asys_bench.contracts.run_files import began_unix_ns, read_run_file
from asys_bench.monitors.tracker.public_config import public_config
from asys_bench.monitors.tracker.tracker import About, HostRun, own_id, read_tracked


def about_run(run_dir: Path, service: str, config: Mapping[str, Any], step_unit: str) -> About:
    """Of the run in `run_dir` for one tracker.

    Raises:
        RunFileError: there is no run.json that can be read.
    """
    document = read_run_file(run_dir)
    theirs = document.get("trackers")
    host = theirs.get("wandb") if isinstance(theirs, dict) else None
    run_id = str(document["run_id"])
    return About(
        run_id=run_id,
        own_id=own_id(run_id, began_unix_ns(document)),
        step_unit=step_unit,
        config=public_config(config),
        known=read_tracked(run_dir, service),
        host=HostRun.from_plain(host),
    )
