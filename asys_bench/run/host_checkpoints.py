"""Checkpoints of the host itself, in `<run>/host-state/`: written at its whole points, read when its run
goes on.

Beside the host's own files a checkpoint has `counts.json`: the version of the weights and the number of
packets at that point, from which the next attempt counts on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from asys_bench.config import MasterConfig
from asys_bench.config.sections.run import Resume
from asys_bench.contracts.host import BaseHost
from asys_bench.contracts.run_files import STATE_DIR
from asys_bench.run.attempts import Continuation
from asys_bench.run.run_dir import RunDir
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_json, write_json
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore, check_seal
from asys_bench.system.files.atomic import Fsync

log = logging.getLogger(__name__)
COUNTS_FILE = "counts.json"
KEEP = 2


class HostCheckpoints:
    """Of one host in one attempt.

    counts: what has been counted so far; asked when a checkpoint is written.
    """

    def __init__(
        self,
        config: MasterConfig,
        host: BaseHost,
        run_dir: RunDir,
        counts: Callable[[], Continuation],
    ) -> None:
        self._host, self._counts = host, counts
        self._every = config.host.checkpoint_every_steps
        self._folder, self._below = run_dir.path / STATE_DIR, run_dir.path
        self._store = CheckpointStore(
            self._folder, KEEP, sync=config.run.fsync is not Fsync.NEVER, below=self._below
        )
        self.wanted = self._every is not None or config.run.resume is not Resume.NEVER
        self.should_stop: Callable[[], bool] = lambda: False
        self._saved_at = 0
        self._failed = False

    def resume(self) -> tuple[int, Continuation] | None:
        """The host goes on from its newest whole checkpoint: its step and what counts on from there.
        None: there is none, or it cannot be saved at all.

        Raises:
            CheckpointError: there are some, and none can be used (the newest one's reason).
        """
        first: CheckpointError | None = None
        for path in self._store.candidates() if self._host.can_be_saved else ():
            try:
                check_seal(path)
                counts = read_json(path / COUNTS_FILE)
                step = self._host.load(path)
                self._saved_at = step
                return step, Continuation(int(counts["weights_version"]), int(counts["packets"]))
            except (CheckpointError, KeyError, TypeError, ValueError) as error:
                failure = (
                    error
                    if isinstance(error, CheckpointError)
                    else CheckpointError(path, str(error))
                )
                log.warning("checkpoint of the host passed over: %s", failure)
                first = first or failure
        if first is not None:
            raise first
        return None

    def attach(self) -> None:
        """Let the host be saved from here on, where that is wanted and it can be."""
        if not self.wanted:
            return
        if not self._host.can_be_saved:
            log.warning(
                "this host cannot be saved by itself: it begins anew, or from checkpoints of its own, "
                "when the run goes on"
            )
            return
        self._host.is_saved = True
        self._host.whole_at = self._whole_at

    def _whole_at(self, step: int) -> None:
        due = self._every is not None and step - self._saved_at >= self._every
        if step != self._saved_at and (due or self.should_stop()):
            self.save(step)

    def end(self, step: int) -> None:
        """The host has left its loop, in its own state's whole point."""
        if step != self._saved_at:
            self.save(step)

    def save(self, step: int) -> None:
        """Write a checkpoint. A failure is said once; the host goes on and the last one stays."""

        def fill(folder: Path) -> None:
            self._host.save(folder)
            counts = self._counts()
            write_json(
                folder / COUNTS_FILE,
                {"weights_version": counts.weights_version, "packets": counts.packets},
            )

        self._saved_at = step
        try:
            self._store.write(step, fill)
        except CheckpointError as error:
            if not self._failed:
                log.error("the host's checkpoint is not written, and it goes on: %s", error)
            self._failed = True
