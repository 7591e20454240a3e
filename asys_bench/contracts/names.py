"""Names of hooks and workers: as names of files, against globs, and within their longest length.

Module names may hold any character, so no name is ever taken apart: what it is made of travels beside
it (`capture.points.hookpoints.HookPoint`, `streams` in run.json, `hook_name` in an SAE's metadata).
"""

from __future__ import annotations

import hashlib
import re
from fnmatch import fnmatchcase

TOKENS = "tokens"
"""The stream of (token id, position) rows that travels beside a text model's activations."""
LABELS = "labels"
"""The stream of what the host says of its rows (`contracts.labels`)."""
SIDE_STREAMS = frozenset({TOKENS, LABELS})
"""Names that no hooked module's stream has: their rows mean something else."""


def file_slug(name: str) -> str:
    """A file name for a hook or worker; names that had to be changed get a digest, so none collide."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
    if cleaned == name and name and name[0] not in ".-":
        return cleaned
    return f"{cleaned.lstrip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def matches(name: str, glob: str) -> bool:
    """`glob` is the name itself, whatever characters it has, or an fnmatch glob that fits it."""
    return name == glob or fnmatchcase(name, glob)


def printable(name: str) -> str:
    """`name` on one line: what does not print is written as Python writes it, a newline as `\\n`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def printable_lines(text: str) -> str:
    """`text` from a run's folder for a terminal: as `printable`, but line ends stay."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(name: str, most_bytes: int) -> str:
    """`name`, or its beginning with a digest of it where it has more bytes of UTF-8."""
    raw = name.encode()
    if len(raw) <= most_bytes:
        return name
    digest = f"...{hashlib.sha256(raw).hexdigest()[:8]}"
    return raw[: most_bytes - len(digest)].decode(errors="ignore") + digest
