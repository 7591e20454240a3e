"""Field paths: `a.b[0].c` as text, ("a", "b", 0, "c") inside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

Path = tuple[str | int, ...]

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_PART = re.compile(
    r"""(?P<dot>\.)?(?:(?P<name>[^\s.\[\]="']+)|\[(?P<index>\d+)\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\])""",
    re.VERBOSE,
)


def format_path(path: Iterable[str | int]) -> str:
    """Text that `parse_path` reads back; keys that are not plain words are quoted in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def parse_path(text: str) -> tuple[Path, str]:
    """The path at the start of `text` and what follows it. Digits alone are still text here:
    whether they are an index shows only against the data.

    Raises:
        ValueError: no path there.
    """
    parts: list[str | int] = []
    position = 0
    while match := _PART.match(text, position):
        bracket = match["name"] is None
        if (match["dot"] is not None) != bool(parts) and not bracket:
            break
        if bracket and match["dot"] is not None:
            break
        if match["index"] is not None:
            parts.append(int(match["index"][:9]))
        elif match["quoted"] is not None:
            parts.append(str(json.loads(match["quoted"])))
        else:
            parts.append(match["name"])
        position = match.end()
    if not parts:
        raise ValueError(f"{text!r} does not start with a field path such as bus.backend")
    return tuple(parts), text[position:]


def assignment(path: Path, value: Any) -> str:
    """`path=value` that `load_config(..., sets=[...])` reads back as exactly this value.

    value: plain data (None, numbers, text, lists, mappings).
    """
    text = yaml.safe_dump(
        value, default_flow_style=True, width=1 << 16, allow_unicode=False, sort_keys=False
    )
    return f"{format_path(path)}={text.removesuffix('...' + chr(10)).strip()}"
