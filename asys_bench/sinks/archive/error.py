"""What archive readers and repairers raise: a typed error that names the file and the offset."""

from __future__ import annotations

from pathlib import Path


class ArchiveError(ValueError):
    """A shard or sidecar is damaged, foreign or in use.

    `offset` is the byte where the trouble starts; None where it is not about a place in the file.
    """

    def __init__(self, path: Path, offset: int | None, reason: str) -> None:
        self.path, self.offset, self.reason = path, offset, reason
        where = str(path) if offset is None else f"{path} at byte {offset}"
        super().__init__(f"{where}: {reason}")


class ShardGoneError(ArchiveError):
    """The shard was deleted (`max_gib`) between the look at the folder and its opening."""
