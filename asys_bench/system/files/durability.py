"""When written bytes are forced to the device.

A killed process loses nothing by `never`: the kernel has the bytes. Only a power cut or a crash of the
machine tells the policies apart, and there a rename without fsync may leave an empty file under the
final name; so the default syncs what cannot be made again.
"""

from __future__ import annotations

from enum import StrEnum


class Fsync(StrEnum):
    """`run.fsync`.

    never: nothing is forced. Files are whole after a kill of any process, not after a power cut.
    checkpoint: SAE checkpoints and archive shards, once, before they get their final names.
    always: also every record batch of the archive before its packets are acknowledged.
    """

    NEVER = "never"
    CHECKPOINT = "checkpoint"
    ALWAYS = "always"

    @property
    def shard_policy(self) -> str:
        """The archiver's word for it."""
        return {Fsync.NEVER: "never", Fsync.CHECKPOINT: "shard", Fsync.ALWAYS: "batch"}[self]
