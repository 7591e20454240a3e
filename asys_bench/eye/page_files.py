"""The files that pages are made of: `pages/`, and the look that all pages of a run share."""

from __future__ import annotations

from importlib.resources import files

from asys_bench.reports.page.style import LAYOUT, MARKS, PALETTE
from asys_bench.reports.run_report.page import STYLE

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (contents, type)."""
    found = {}
    for entry in files("asys_bench.eye").joinpath("pages").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in TYPES:
            found[entry.name] = entry.read_bytes(), TYPES[suffix]
    own, kind = found["eye.css"]
    # The look that all pages of a run share, then what this one adds.
    found["eye.css"] = (PALETTE + LAYOUT + MARKS + STYLE).encode() + own, kind
    return found
