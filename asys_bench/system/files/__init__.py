"""Files that survive a crash and that only their owner reads. The lowest floor: it imports no other.

`atomic`: private modes, replacing a file whole, when to fsync, why a disk takes no more. `append_file`: a
file that grows by whole lines. `below`: opening what a stranger may have written. `checksum`: of a file.
`locks`: of the kernel, on an open file. `sources`: folders whose files come when they are opened.
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
