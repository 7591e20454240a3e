"""Names of hooks and workers as names of files."""

from __future__ import annotations

import hashlib
import re


def file_slug(name: str) -> str:
    """A file name for a hook or worker; names that had to be changed get a digest, so none collide."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
    if cleaned == name and name and name[0] not in ".-":
        return cleaned
    return f"{cleaned.lstrip('.-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
