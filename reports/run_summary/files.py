"""The files a run wrote. The one place of this folder that reads a disk."""

from __future__ import annotations

from pathlib import Path

from asys_bench.reports.run_summary.summary import FileEntry


def list_files(run_dir: Path) -> tuple[FileEntry, ...]:
    """Every regular file under `run_dir` with its size, sorted; one that vanishes is left out."""
    found = []
    for path in sorted(run_dir.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink():
                relative = path.relative_to(run_dir).as_posix()
                found.append(FileEntry(relative, path.stat().st_size))
        except OSError:
            continue
    return tuple(found)
