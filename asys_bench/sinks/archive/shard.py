"""The writer of one shard: record batches appended by pwritev, each whole or not at all.

PROTOCOL
1. The file is created under a dot name and locked (flock), so no repair touches a live shard.
2. Schema and first batch are written; only then is it renamed to `*.arrows`. A shard seen under its
   name therefore always has a schema and rows.
3. Each batch is one gather write at a known offset. A failed write is truncated away at once.
4. Closing appends the end-of-stream marker and then writes the sidecar; where a disk refuses one of
   them, `close` can be called again and goes on there.

A SIGKILL loses the batch of step 3 at most. Arrow's own stream writer frames the messages; what it
emits is collected as buffers that still point at the rows, so nothing is copied on the way to write.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from crc32c import crc32c

from asys_bench.sinks.archive.frames import END_OF_STREAM, ROWS_KEY
from asys_bench.sinks.archive.read import MOST_UNPACKED_BYTES
from asys_bench.sinks.archive.sidecar import Tally
from asys_bench.sinks.archive.space import DiskRefusedError, Patience
from asys_bench.system.files import open_private, sync_folder
from asys_bench.system.files.below import make_folders
from asys_bench.system.files.locks import take_lock

log = logging.getLogger(__name__)
_BUFFERS_PER_WRITE = 512  # IOV_MAX is 1024


class _Collector:
    """The file object that Arrow writes to: it keeps the buffers instead."""

    closed = False

    def __init__(self) -> None:
        self.buffers: list[Any] = []

    def write(self, buffer: Any) -> int:
        self.buffers.append(buffer)
        return len(buffer)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> list[Any]:
        taken, self.buffers = self.buffers, []
        return taken


class ShardWriter:
    """One open shard.

    Every method may pause while the disk refuses (`Patience`), and then raises DiskRefusedError, or
    OSError for what waiting does not mend. A batch that was refused is not in the file.
    """

    def __init__(
        self, path: Path, schema: Any, *, compression: str | None, sync: bool, patience: Patience
    ) -> None:
        self.path = path
        self.size = 0
        """Bytes of whole messages in the file."""
        self.began = time.monotonic()
        self._metadata = {k.decode(): v.decode() for k, v in schema.metadata.items()}
        self._sync, self._patience = sync, patience
        self._tally, self._crc = Tally(), 0
        self._compression = compression
        self._stream, self._collector = self._new_stream(schema, compression)
        self._partial = path.with_name(f".{path.name}.tmp")
        self._fd = patience.attempt(f"create {path}", self._create)
        self._named = self._ended = False

    @staticmethod
    def _new_stream(schema: Any, compression: str | None) -> tuple[Any, _Collector]:
        collector = _Collector()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        return pa.ipc.new_stream(pa.PythonFile(collector, "w"), schema, options=options), collector

    def _create(self) -> int:
        hook_folder = self.path.parent
        make_folders(hook_folder, below=hook_folder.parent.parent)  # <run>/archive/<hook>
        fd = open_private(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        take_lock(fd)
        return fd

    @property
    def discarded(self) -> bool:
        """The disk refused its first batch; a new shard is needed for the next."""
        return self._fd < 0

    def append(self, batch: Any, rows: int) -> int:
        """Write one record batch of so many rows of the archive. Returns bytes."""
        said = None if rows == batch.num_rows else {ROWS_KEY: b"%d" % rows}
        stream, collector = self._stream, self._collector
        if self._compression is not None and batch.nbytes > MOST_UNPACKED_BYTES:
            # One huge packet: a reader would take it for a bomb if it shrank a lot.
            stream, collector = self._new_stream(batch.schema, None)
            # A stream writes the schema with its first batch, and the file is to have one of them.
            said_it = (stream, collector) if self.size else (self._stream, self._collector)
            said_it[0].write_batch(batch.slice(0, 0))
            said_it[1].take()
        stream.write_batch(batch, custom_metadata=said)
        buffers = collector.take()
        try:
            written = self._write(buffers)
            if not self._named:
                self._patience.attempt(f"name {self.path}", self._give_name)
                self._named = True
        except (DiskRefusedError, OSError):
            if not self._named:
                self.abandon()  # the schema went with the batch
            raise
        self._tally.add(batch)
        return written

    def _give_name(self) -> None:
        if self._sync:
            self.sync()
        self._partial.rename(self.path)
        if self._sync:
            sync_folder(self.path.parent)

    def _write(self, buffers: Sequence[Any]) -> int:
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        written = self._patience.attempt(
            f"write {self.path}", lambda: write_all(self._fd, views, self.size)
        )
        for view in views:
            self._crc = crc32c(view, self._crc)
        self.size += written
        return written

    def sync(self) -> bool:
        """Wait until all rows are on the device; False where the device failed.

        A kernel reports a failed write-back once and forgets the pages, so it is never tried again:
        the checksum in the sidecar tells later whether the rows are there.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            log.error(
                "%s: the device failed (%s); what it holds of the shard is not known until "
                "`asys-run verify` reads it",
                self.path,
                str(error),  # not the exception: its frames hold the lease
            )
            return False
        return True

    def close(self) -> None:
        """End the stream and write the sidecar. Idempotent; what was appended stays in any case."""
        if self._fd < 0:
            return
        if not self._named:
            self.abandon()
            return
        if not self._ended:
            self._write([END_OF_STREAM])
            self._ended = True
            if self._sync:
                self.sync()
        run_id, hook = self._metadata["run_id"], self._metadata["hook"]
        counts = self._tally.sidecar(run_id, hook, self.size, crc32c=self._crc)
        self._patience.attempt(
            f"write the sidecar of {self.path}",
            lambda: counts.write(self.path, sync=self._sync),
        )
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file as it is; without a name it is removed. Idempotent."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if not self._named:
            self._partial.unlink(missing_ok=True)


def write_all(fd: int, views: list[memoryview], offset: int) -> int:
    """Write all `views` at `offset`; on failure the file ends at `offset` again. Returns bytes.

    Raises:
        OSError: as write(2); nothing of `views` is left in the file.
    """
    position = offset
    waiting = list(views)
    try:
        while waiting:
            done = os.pwritev(fd, waiting[:_BUFFERS_PER_WRITE], position)
            if done == 0:
                raise OSError(errno.ENOSPC, "the file takes no more bytes")
            position += done
            while waiting and done >= waiting[0].nbytes:
                done -= waiting.pop(0).nbytes
            if done:
                waiting[0] = waiting[0][done:]
    except OSError:
        with suppress(OSError):  # the next batch is written over what stays
            os.ftruncate(fd, offset)
        raise
    return position - offset
