"""CPU lists as the kernel writes them: `0-3,8,10-11`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

HIGHEST_CPU = 8191
"""The kernel's own limit (CONFIG_NR_CPUS) on common builds."""
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def parse_cpus(text: str) -> frozenset[int]:
    """The CPUs of a list such as `0-3,8`; an empty text is the empty set.

    Raises:
        ValueError: not a CPU list; names the part that is wrong.
    """
    found: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.strip().split(","))):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a CPU or a range of CPUs such as 0-3")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > HIGHEST_CPU:
            raise ValueError(f"range {part!r} must ascend and end at {HIGHEST_CPU} or below")
        found.update(range(first, last + 1))
    return frozenset(found)


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest list that `parse_cpus` reads back."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _as_text(value: Any) -> Any:
    """`3` and `[0, 2]` are CPU lists too."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list) and all(type(cpu) is int for cpu in value):
        return ",".join(map(str, value))
    return value


def _normal(text: str) -> str:
    cpus = parse_cpus(text)
    if not cpus:
        raise ValueError("a CPU list must name at least one CPU, for example 0-3,8")
    return format_cpus(cpus)


CpuList = Annotated[str, BeforeValidator(_as_text), AfterValidator(_normal)]
"""A configuration field that holds a CPU list; kept in its shortest spelling."""
