"""Folders whose files are brought to this machine when somebody opens them through `below`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """Files of a folder that are brought to this machine when somebody opens them (`store.mirror`). The
    folders themselves are there."""

    def files(self, folder: Path) -> list[Path]:
        """Those that `folder` has, brought or not."""
        ...

    def has(self, path: Path) -> bool: ...

    def bring(self, path: Path) -> None:
        """Put the file where it belongs. Raises OSError: it cannot be had."""
        ...


_sources: dict[Path, Source] = {}


def mount(root: Path, source: Source) -> None:
    """From now on, what is missing below `root` comes from `source`."""
    _sources[root] = source


def unmount(root: Path) -> None:
    """Idempotent."""
    _sources.pop(root, None)


def bring(folder: Path) -> None:
    """Have all files of a folder here, for code that opens them by itself; nothing where it is no mirror's.

    Raises:
        OSError: one cannot be had.
    """
    source = source_of(folder)
    for path in source.files(folder) if source is not None else ():
        if not os.path.lexists(path):
            source.bring(path)  # type: ignore[union-attr]


def is_elsewhere(path: Path) -> bool:
    """Whether opening the file would bring it from its source."""
    source = source_of(path)
    return source is not None and not os.path.lexists(path) and source.has(path)


def source_of(path: Path) -> Source | None:
    """What brings the files of the folder that `path` lies in; None: they are this machine's own."""
    for root, source in _sources.items():
        if path.is_relative_to(root):
            return source
    return None
