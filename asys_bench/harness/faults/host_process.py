"""The host under test: `python -m asys_bench.harness.faults.host_process`, a process of its own.

A line of JSON on standard input says what to run (`HostTask`); the end of standard input asks it to
finish. It leaves `outcome.json`, `steps.npy` and what its twin knows (`twin`) in its task's folder,
which no fault touches.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import traceback
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np

from asys_bench.config import config_from_data
from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.harness.faults.twin import digest, train_twin
from asys_bench.harness.plugins import register_extra
from asys_bench.run.experiment import ExperimentPipeline
from asys_bench.run.lifecycle import RunOutcome
from asys_bench.system.files.atomic import replace_file

OUTCOME_FILE, STEPS_FILE = "outcome.json", "steps.npy"


@dataclass(frozen=True)
class HostTask:
    """folder: where the results go. check_weights: train once more, unobserved, for
    weights and rows to compare.

    record_steps: keep when each step began and ended (32 bytes per step).
    """

    folder: str
    config: dict[str, Any]
    check_weights: bool
    record_steps: bool = True


class _Steps:
    """When each host step began and ended (CLOCK_MONOTONIC, ns)."""

    def __init__(self, pipeline: ExperimentPipeline) -> None:
        clock = pipeline.session.clock
        self.begun, self.ended = array("q"), array("q")
        own = clock.step
        begun, ended = self.begun, self.ended

        def step(n: int = 1) -> None:
            ended.append(monotonic_ns())
            own(n)
            begun.append(monotonic_ns())

        setattr(clock, "step", step)  # noqa: B010 - an instance's own method, on purpose

    def save(self, path: Path) -> None:
        """Steps from the second on; the first has no known beginning."""
        begun, ended = np.array(self.begun, np.int64), np.array(self.ended, np.int64)
        np.save(path, np.stack([begun[:-1], ended[1:]]))  # no .npz: ZIP knows no time before 1980


def run_host(task: HostTask) -> dict[str, Any]:
    """Run to the end of standard input; what it came to, as JSON-able data."""
    register_extra({})
    config = config_from_data(task.config)
    before = set(os.listdir("/proc/self/fd"))
    pipeline = ExperimentPipeline(config)
    try:
        pipeline.setup()
        steps = _Steps(pipeline) if task.record_steps else None
        threading.Thread(target=_await_end, args=(pipeline,), daemon=True).start()
        result = pipeline.run()
        begin_ns = monotonic_ns()
        outcome = pipeline.shutdown()
        close_ns = monotonic_ns() - begin_ns
        points, hooks = pipeline.session.points, pipeline.session.hooks
        model = points[0].model if points else None
        weights = digest(model) if model is not None else None
        document = {**_document(outcome, result.steps, weights), "close_ns": close_ns}
        if steps is not None:
            steps.save(Path(task.folder) / STEPS_FILE)
    finally:
        pipeline.abort()
        pipeline.close()
    del outcome, pipeline, points, model, steps
    gc.collect()  # a closed ring lies in cycles of ours until then
    document["descriptors_left"] = len(set(os.listdir("/proc/self/fd")) - before)
    if task.check_weights and weights is not None:
        twin = train_twin(config, result.steps, hooks)
        twin.save(Path(task.folder))
        document["weights_unobserved"] = twin.weights
    return document


def _document(outcome: RunOutcome, steps: int, weights: str | None) -> dict[str, Any]:
    return {
        "run_dir": str(outcome.run_dir.path),
        "orderly": outcome.orderly,
        "watchdog_restarts": outcome.watchdog_restarts,
        "steps": steps,
        "weights": weights,
        "account": asdict(outcome.account) if outcome.account is not None else None,
    }


def read_outcome(folder: Path) -> dict[str, Any]:
    """What a host process left behind; its `failure` says so when that is nothing."""
    path = folder / OUTCOME_FILE
    if not path.is_file():
        return {"failure": "it left no outcome"}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def outcome_account(outcome: Mapping[str, Any]) -> BusAccount | None:
    """The bus's account at the end; None where there was no bus, or nobody to write it down."""
    data = outcome.get("account")
    if not data:
        return None
    groups = tuple(GroupAccount(**group) for group in data["groups"])
    return BusAccount(**{**data, "groups": groups})


def read_steps(folder: Path) -> tuple[Any, Any]:
    """(begun, ended) of every host step but the first: int64 arrays, CLOCK_MONOTONIC ns."""
    path = folder / STEPS_FILE
    if not path.is_file():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begun, ended = np.load(path)
    return begun, ended


def _await_end(pipeline: ExperimentPipeline) -> None:
    sys.stdin.read()
    pipeline.request_stop()


def main() -> int:
    """Entry point; 0 even when the host failed: `outcome.json` says so."""
    task = HostTask(**json.loads(sys.stdin.readline()))
    try:
        document = run_host(task)
    except Exception as error:  # noqa: BLE001 - whatever the host raised is the outcome
        traceback.print_exc()
        document = {"failure": f"{type(error).__name__}: {error}"}
    replace_file(Path(task.folder) / OUTCOME_FILE, json.dumps(document).encode(), sync=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
