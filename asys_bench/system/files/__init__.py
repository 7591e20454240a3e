"""Files that survive a crash and that only their owner reads. The lowest floor: it imports no other.

`durability` when to fsync, `private` modes, `atomic` replacing a file whole, `below` opening what a
stranger may have written, `refusal` what a disk says when it takes no more, `checksum` of a whole file.
"""

from asys_bench.system.files.atomic import (
    Fsync,
    make_private_folder,
    open_private,
    reason_of,
    replace_file,
    sync_file,
    sync_folder,
    sync_tree,
)
from asys_bench.system.files.checksum import file_crc32c

__all__ = [
    "Fsync",
    "file_crc32c",
    "make_private_folder",
    "open_private",
    "reason_of",
    "replace_file",
    "sync_file",
    "sync_folder",
    "sync_tree",
]
