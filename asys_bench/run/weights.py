"""Weights of a host that trains, kept in `<run>/host/` for `asys-run evaluate`.

`host.keep_weights` keeps those that the host ends with; a sink that evaluates while the run goes on also
asks for them every so often. They are written between two steps, in the host's thread: that stops the
host for as long as the disk takes, changes nothing in it, and never raises in it.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from asys_bench.config import MasterConfig
from asys_bench.contracts.host import BaseHost, HostClock
from asys_bench.contracts.run_files import HOST_DIR, WEIGHTS_FILE, WEIGHTS_SCHEMA
from asys_bench.sae.checkpoint.checkpoint_files import write_json
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore

log = logging.getLogger(__name__)

LEAST_S = 10.0
"""Between two of a host that goes on: an evaluation takes as long to begin."""

KEPT = 2
"""Folders: the newest, and the one that an evaluation may be reading."""


def live_interval_s(config: MasterConfig) -> float | None:
    """Time between two, in seconds; None: no sink evaluates while the run goes on."""
    asked = (
        sink.plugin_options().weights_every_s for sink in config.enabled_sinks.values()
    )  # fmt: skip
    wanted = min((every_s for every_s in asked if every_s is not None), default=None)
    return None if wanted is None else max(LEAST_S, wanted)


def _store(run_dir: Path) -> CheckpointStore:
    return CheckpointStore(run_dir / HOST_DIR, KEPT, sync=False, below=run_dir)


class KeptWeights:
    """Keeps what `host` says its weights are, under the run's folder."""

    def __init__(self, host: BaseHost, run_dir: Path) -> None:
        self._host, self._store = host, _store(run_dir)
        self.failed = False

    def keep(self, host_step: int, weights_version: int) -> None:
        """Write them; a failure is said once, and ends the keeping."""
        if self.failed:
            return

        def fill(folder: Path) -> None:
            self._host.save_weights(folder)
            about = {
                "schema": WEIGHTS_SCHEMA,
                "host_step": host_step,
                "weights_version": weights_version,
                "unix_ns": time.time_ns(),
            }
            write_json(folder / WEIGHTS_FILE, about)

        try:
            if not self._store.holds(host_step):
                self._store.write(host_step, fill)
        except Exception as error:  # noqa: BLE001 - nothing of ours raises in the host
            self.failed = True
            log.error("the host's weights are not kept any more: %s", error)


def forget_after(run_dir: Path, host_step: int) -> None:
    """Remove weights of steps after `host_step`, from which the host goes on: it makes them again."""
    _store(run_dir).remove_after(host_step)


class KeepingClock:
    """A host's clock that keeps its weights at the first step and then every `every_s` seconds."""

    def __init__(self, clock: Any, kept: KeptWeights, every_s: float) -> None:
        self._clock, self._kept, self._every_s = clock, kept, every_s
        self._due = 0.0
        self.report: Any = clock.report
        self.weights_updated: Any = clock.weights_updated
        self.label: Any = clock.label

    @property
    def should_stop(self) -> bool:
        return bool(self._clock.should_stop)

    @property
    def label_horizon(self) -> int:
        return int(self._clock.label_horizon)

    def step(self, n: int = 1) -> None:
        self._clock.step(n)
        now = time.monotonic()
        if now >= self._due:
            self._kept.keep(self._clock.host_step, self._clock.weights_version)
            self._due = time.monotonic() + self._every_s


def host_clock(clock: Any, kept: KeptWeights | None, every_s: float | None) -> HostClock:
    """The clock for the host: `clock` itself where nothing is kept on the way."""
    if kept is None or every_s is None:
        found: HostClock = clock
        return found
    return KeepingClock(clock, kept, every_s)
