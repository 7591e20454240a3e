"""Text from a result inside GitHub-flavoured Markdown, without becoming Markdown itself."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]()|~!])")
_LINKED = re.compile(r"([@#])(?=\w)")
_RUN = re.compile(r"`+")


def prose(text: str) -> str:
    """One line of plain text. An empty comment after @ and # keeps GitHub from linking them:
    a report must not notify whoever a case happens to be named after."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKED.sub(r"\1<!-- -->", _SPECIAL.sub(r"\\\1", line))


def code(text: str) -> str:
    """A code span on one line, also inside a table (where a pipe needs its backslash)."""
    line = " ".join(text.split()).replace("|", "\\|")
    if not line:
        return ""
    fence = "`" * (1 + max((len(run) for run in _RUN.findall(line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in _RUN.findall(text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
