"""The worker that sends a run to its store while the run goes on (`storage.uri`).

Sending is done by a thread, which waits for the network; the worker itself counts, beats its heart
while something moves, and leaves at the run's deadline whatever the thread is at: a kill at any point
leaves the copy whole.
"""

from __future__ import annotations

import logging
import threading
import time

from pydantic import Field

from asys_bench.contracts.monitor import (
    LEAVE_S,
    BaseMonitor,
    MonitorContext,
    MonitorOptions,
    MonitorPlugin,
    Totals,
)
from asys_bench.contracts.run_files import RunFileError
from asys_bench.contracts.stats import RunState
from asys_bench.monitors.upload.lock import UploadBusyError, UploadLock
from asys_bench.monitors.upload.uploader import RunIsElsewhereError, StoreTakenError, Uploader
from asys_bench.store.objects import CALL_S, Backoff, ObjectStore, StoreError
from asys_bench.store.uri import place_of
from asys_bench.system.allocator import keep_freed_memory

log = logging.getLogger(__name__)
INTERVAL_S = 5.0
"""Between two looks at the run's folder."""
LAST_INTERVAL_S = 0.3
"""The same when its workers write what they have."""
STUCK_S = CALL_S + 60.0
"""Without any movement for so long the thread hangs, and the watchdog may restart this worker."""


class UploadOptions(MonitorOptions):
    """Options of the `upload` monitor: those of `storage`."""

    uri: str = Field(description="where the copy is; `{run_id}` stands for the run's id")
    delete_local_after_s: float | None = Field(None, ge=0, description="see `storage`")


class UploadMonitor(BaseMonitor):
    """See the module."""

    interval_s = 0.5

    def __init__(self, options: UploadOptions) -> None:
        self._options = options
        self._uploader: Uploader | None = None
        self._lock: UploadLock | None = None
        self._totals = Totals()
        self._thread: threading.Thread | None = None
        self._moved_at = time.monotonic()
        self._stopped = False
        self._stop, self._final, self._done = (threading.Event() for _ in range(3))

    def open(self, context: MonitorContext) -> None:
        """Start sending. Nothing of the store is asked here: it may be away."""
        self._context = context
        keep_freed_memory()
        self._moved_at = time.monotonic()
        self._thread = threading.Thread(target=self._send_for_ever, name="upload", daemon=True)
        self._thread.start()

    def tick(self, state: RunState) -> None:
        """Count; when the run has stopped, wait until everything is sent or the time is over."""
        if state is not RunState.STOPPED:
            self._publish()
            if self._context.time_left_s() != float("inf"):
                self._final.set()  # the host is gone, or its workers drain: what they close is sent at once
            if time.monotonic() - self._moved_at > STUCK_S:
                raise RuntimeError(f"nothing has moved for {STUCK_S:g} s: the upload hangs")
            return
        self._stopped = True
        self._done.clear()
        self._final.set()
        while not self._done.wait(0.05) and self._context.time_left_s() > LEAVE_S:
            self._context.heartbeat()
        self._stop.set()
        self._publish()

    def close(self) -> None:
        """The thread ends with the process: it may be waiting for the network."""
        self._stop.set()

    def _publish(self) -> None:
        slot = self._context.slot
        if self._uploader is None or slot is None:
            return
        told = self._uploader.progress
        self._totals.count(slot.counter("storage_files"), told.files)
        self._totals.count(slot.counter("storage_bytes"), told.bytes)
        self._totals.count(slot.counter("storage_deleted_shards"), told.deleted_shards)
        for reason, errors in list(told.errors.items()):
            self._totals.count(slot.counter("storage_errors", reason=reason), errors)
        slot.gauge("storage_pending_files").set(told.pending_files)
        slot.gauge("storage_pending_bytes").set(told.pending_bytes)
        slot.gauge("storage_missed_shards").set(told.missed_shards)

    def _moved(self) -> None:
        self._moved_at = time.monotonic()

    def _send_for_ever(self) -> None:
        backoff = Backoff()
        said: str | None = None
        while not self._stop.is_set():
            self._moved()
            pause_s = INTERVAL_S
            final = self._final.is_set()
            try:
                done = self._send(final)
            except (StoreError, StoreTakenError) as error:
                if final and isinstance(error, RunIsElsewhereError):
                    self._done.set()
                    return
                pause_s = backoff.next_s()
                if str(error) != said:
                    log.warning(
                        "%s; the run's files are kept here, and sending is tried again", error
                    )
                    said = str(error)
            except (RunFileError, UploadBusyError, OSError) as error:
                pause_s = backoff.next_s()
                log.warning("nothing is sent: %s", error)
            else:
                if said is not None:
                    log.warning("%s takes files again", self._options.uri)
                said = None
                backoff.reset()
                assert self._uploader is not None
                if final and done and (self._stopped or not self._uploader.progress.open_shards):
                    self._done.set()
                    if self._stopped:
                        return
                pause_s = LAST_INTERVAL_S if final else pause_s
            self._moved()
            self._pause(pause_s, final)

    def _pause(self, seconds: float, final: bool) -> None:
        """Until the next look; a run that has stopped in the meantime is looked at once more at once."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stop.wait(0.1):
            self._moved()
            if self._final.is_set() and not final:
                return

    def _send(self, final: bool) -> bool:
        if self._uploader is None:
            self._lock = self._lock or UploadLock(self._context.run_dir)
            self._uploader = Uploader(
                self._context.run_dir,
                ObjectStore(place_of(self._options.uri, self._context.run_id)),
                delete_after_s=self._options.delete_local_after_s,
                should_stop=self._stop.is_set,
                alive=self._moved,
                account=self._context.account,
            )
        try:
            return self._uploader.send(final=final)
        except StoreError as error:
            self._uploader.progress.errors[error.reason] += 1
            raise


def _build(options: MonitorOptions) -> UploadMonitor:
    assert isinstance(options, UploadOptions)
    return UploadMonitor(options)


plugin = MonitorPlugin(
    name="upload",
    summary="sends a run's shards, checkpoints and documents to an object store (`storage.uri`)",
    options=UploadOptions,
    build=_build,
)
