"""The checks of single files: lines, TensorBoard event files, small documents.

Tables and logs (metrics.csv, monitor.log) are only appended to, in whole lines. Event files are TFRecords,
each with a masked CRC-32C of its length and of its bytes. Documents (run.json, summary.json, config.yaml
and their like) are written whole.
"""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c

from asys_bench.config.document import read_run_config
from asys_bench.config.problems import ConfigError
from asys_bench.contracts.run_files import (
    CONFIG_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    RUN_FILE,
    RunFileError,
    read_run_file,
)
from asys_bench.monitors.metrics_csv import COLUMNS, OLD_COLUMNS
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.verify.finding import Finding, State
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_tensors
from asys_bench.system.files import file_crc32c, replace_file
from asys_bench.system.files.below import open_file, parse_json, read_json, scan_if_there

MAX_LINE_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20
"""Of an event file."""
MAX_HEADER_BYTES = 64 << 20
"""Of a safetensors file."""
MAX_TAIL_BYTES = 128 << 20
"""What a repair keeps of a torn tail."""
REQUIRED = (RUN_FILE, CONFIG_FILE)
"""Documents that every run has."""


def _bad_row(line: bytes, first: bool) -> str:
    """Why this is no row of metrics.csv; empty when it is one."""
    try:
        (fields,) = csv.reader([line.decode()]) or ([],)
        if first:
            known = tuple(fields) in (COLUMNS, OLD_COLUMNS)
            return "" if known else f"its columns are not those of {METRICS_FILE}"
        if len(fields) not in (len(COLUMNS), len(OLD_COLUMNS)):
            return f"{len(fields)} fields instead of {len(COLUMNS)}"
        row = dict(zip(COLUMNS, fields, strict=False))
        float(row["time_s"])
        float(row["value"] or "nan")
    except (ValueError, csv.Error) as error:
        return str(error)
    return ""


def _bad_event(line: bytes, first: bool) -> str:
    try:
        event = parse_json(line)
    except ValueError as error:
        return str(error)
    return "" if isinstance(event, dict) and "event" in event else "no event"


CHECKS: dict[str, tuple[str, Callable[[bytes, bool], str]]] = {
    METRICS_FILE: ("table", _bad_row),
    EVENTS_FILE: ("log", _bad_event),
}
"""File name -> kind and the check of one line (is it the first?)."""


def check_lines(path: Path, *, live: bool, repair: bool, keep_torn: bool) -> Finding:
    """The file `path` of the run's folder; a half line at its end is torn, or being written while the
    run goes on."""
    name, run_dir = path.name, path.parent
    kind, bad = CHECKS[name]
    rows, bad_lines, first_bad = 0, 0, ""
    tail = 0
    try:
        fd = open_file(path, below=run_dir)
    except OSError as error:
        return Finding(name, kind, State.DAMAGED, str(error), lost_rows=None)
    with os.fdopen(fd, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                tail = os.fstat(fd).st_size - file.tell() + len(line)
                break
            if why := bad(line, number == 1):
                bad_lines += 1
                first_bad = first_bad or f"line {number}: {why}"
            elif number > 1 or kind == "log":
                rows += 1
    if bad_lines:
        detail = f"{first_bad} ({bad_lines} bad lines)"
        return Finding(name, kind, State.DAMAGED, detail, rows, lost_rows=bad_lines)
    if not tail:
        return Finding(name, kind, State.BEING_WRITTEN if live else State.OK, "", rows)
    if live:
        return Finding(name, kind, State.BEING_WRITTEN, "", rows)
    done = cut_tail(path, run_dir, tail, keep_torn) if repair else None
    return Finding(name, kind, State.TORN, "its last line is not whole", rows, 0, 1, tail, done)


def cut_tail(path: Path, run_dir: Path, tail: int, keep: bool) -> str:
    """Take a torn tail off; the cut bytes are on the disk before the file is changed."""
    try:
        fd = open_file(path, os.O_RDWR, below=run_dir)
    except OSError as error:
        return f"not repaired: {error}"
    try:
        end = os.fstat(fd).st_size - tail
        kept = "discarded"
        if keep and tail > MAX_TAIL_BYTES:
            return f"not repaired: a tail of {tail} bytes is no record; --discard-torn cuts it off"
        if keep:
            copy = path.with_name(path.name + ".torn")
            replace_file(copy, os.pread(fd, tail, end), sync=True)
            kept = f"kept in {copy.name}"
        os.ftruncate(fd, end)
        os.fsync(fd)
    except OSError as error:
        return f"not repaired: {error}"
    finally:
        os.close(fd)
    return f"cut {tail} bytes off ({kept})"


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


def check_window(path: Path, name: str, *, live: bool) -> Finding:
    """A window of a reservoir: tensors with a row each for the same rows."""
    try:
        tensors = read_tensors(path)
        lengths = {len(tensor) for tensor in tensors.values() if tensor.ndim}
        if "values" not in tensors or len(lengths) != 1:
            raise CheckpointError(path, "its columns are not of the same rows")
    except CheckpointError as error:
        if live and not path.exists():
            return Finding(name, "window", State.BEING_WRITTEN)
        return Finding(name, "window", State.DAMAGED, error.reason.splitlines()[0], lost_rows=None)
    return Finding(name, "window", State.OK, "", lengths.pop())


def check_index(path: Path, name: str, run_dir: Path, *, live: bool) -> Finding | None:
    """The columns of a feature index, by the document that names them; None where none does: a sink was
    killed between the two."""
    for entry in scan_if_there(path.parent, below=run_dir):
        if entry.path.suffix != ".json":
            continue
        try:
            document = read_json(entry.path, below=run_dir)
            if not isinstance(document, dict) or document.get("columns") != path.name:
                continue
            index = FeatureIndex.of_file(entry.path, run_dir)
            if file_crc32c(path) != document.get("crc32c"):
                raise ReadingError("its bytes do not match the crc32c of its document")
        except (OSError, ValueError, ReadingError) as error:
            if live and not path.exists():
                return Finding(name, "index", State.BEING_WRITTEN)
            detail = str(error).splitlines()[0]
            return Finding(name, "index", State.DAMAGED, detail, lost_rows=None)
        return Finding(name, "index", State.OK, "", index.rows)
    return None


def _damaged(name: str, records: int, lost: int) -> Finding:
    detail = f"record {records + 1} does not match its checksum"
    return Finding(name, "events", State.DAMAGED, detail, records, 0, None, lost)


def _masked(data: bytes) -> int:
    value = int(crc32c(data))
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def check_document(path: Path, name: str, run_dir: Path) -> Finding:
    """A JSON file of the run, or its config.yaml: it parses, and run.json says what a run is."""
    detail = ""
    try:
        if path.name == CONFIG_FILE:
            read_run_config(run_dir)
        elif path == run_dir / RUN_FILE:
            if read_run_file(run_dir).get("result") is None:
                detail = "no result: it goes on, or it was killed"
        else:
            read_json(path, below=run_dir)
    except ConfigError as error:
        return Finding(name, "document", State.DAMAGED, error.problems[0].message)
    except (OSError, ValueError, RunFileError) as error:
        return Finding(name, "document", State.DAMAGED, str(error).splitlines()[0])
    return Finding(name, "document", State.OK, detail)
