"""TensorBoard event files: TFRecords, each with a masked CRC-32C of its length and of its bytes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from crc32c import crc32c

from asys_bench.rundir.verify.finding import Finding, State
from asys_bench.rundir.verify.lines import cut_tail
from asys_bench.system.files.below import open_file

MAX_RECORD_BYTES = 64 << 20


def check_events(
    path: Path,
    name: str,
    run_dir: Path,
    *,
    live: bool,
    repair: bool = False,
    keep_torn: bool = True,
) -> Finding:
    """Walk the records. A tail that is too short is torn; readers leave it out by themselves."""
    records, good_end = 0, 0
    try:
        fd = open_file(path, below=run_dir)
    except OSError as error:
        return Finding(name, "events", State.DAMAGED, str(error), lost_rows=None)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        while head := file.read(12):
            if len(head) < 12:
                break
            length, length_crc = struct.unpack("<QI", head)
            if _masked(head[:8]) != length_crc or length > MAX_RECORD_BYTES:
                return _damaged(name, records, size - good_end)
            body = file.read(length + 4)
            if len(body) < length + 4:
                break
            if _masked(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
                return _damaged(name, records, size - good_end)
            records += 1
            good_end = file.tell()
    lost = max(0, size - good_end)
    if live:
        return Finding(name, "events", State.BEING_WRITTEN, "", records)
    if lost:
        done = cut_tail(path, run_dir, lost, keep_torn) if repair else None
        return Finding(
            name, "events", State.TORN, "its last record is not whole", records, 0, 1, lost, done
        )
    return Finding(name, "events", State.OK, "", records)


def _damaged(name: str, records: int, lost: int) -> Finding:
    detail = f"record {records + 1} does not match its checksum"
    return Finding(name, "events", State.DAMAGED, detail, records, 0, None, lost)


def _masked(data: bytes) -> int:
    value = int(crc32c(data))
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
