"""An override as text, from a field's path and a value: what `--set` would be given."""

from __future__ import annotations

from typing import Any

import yaml

from asys_bench.config.paths import Path, format_path


def assignment(path: Path, value: Any) -> str:
    """`path=value` that `load_config(..., sets=[...])` reads back as exactly this value.

    value: plain data (None, numbers, text, lists, mappings).
    """
    text = yaml.safe_dump(
        value, default_flow_style=True, width=1 << 16, allow_unicode=False, sort_keys=False
    )
    return f"{format_path(path)}={text.removesuffix('...' + chr(10)).strip()}"
