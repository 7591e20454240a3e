"""The files a run wrote. The one place of this folder that reads a disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from asys_bench.reports.run_summary.summary import FileEntry
from asys_bench.system.files.below import EntryKind, walk


def list_files(run_dir: Path) -> tuple[FileEntry, ...]:
    """Every regular file under `run_dir` with its size, sorted; one that vanishes is left out."""
    found = []
    try:
        for path, kind in walk(run_dir):
            if kind is EntryKind.FILE:
                with suppress(FileNotFoundError):
                    relative = path.relative_to(run_dir).as_posix()
                    found.append(FileEntry(relative, path.stat().st_size))
    except OSError:
        pass  # what was found so far
    return tuple(sorted(found, key=lambda entry: entry.path.split("/")))
