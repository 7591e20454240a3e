"""Overrides of single values: `--set bus.backend=cpp_spmc` and `ASYS__BUS__BACKEND=cpp_spmc`.

An override replaces what it names, mappings too: `--set sinks={}` leaves no sink.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping, Sequence

from asys_bench.config.document import parse_document
from asys_bench.config.node import Node
from asys_bench.config.paths import Path, format_path, parse_path
from asys_bench.config.problems import ConfigError, Origin, Problem

ENV_PREFIX = "ASYS__"
_AT_SECURE = 23
"""getauxval(3): the kernel started this program with more rights than its caller has."""

log = logging.getLogger(__name__)


def trusted_environment() -> Mapping[str, str]:
    """The environment; without `ASYS__...` where its author has fewer rights than this process, whose
    files those settings would name (a set-user-ID program, one with file capabilities)."""
    if not is_privileged():
        return os.environ
    refused = sorted(name for name in os.environ if name.startswith(ENV_PREFIX))
    if refused:
        log.warning("this process runs with another user's rights: ignored %s", ", ".join(refused))
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


def is_privileged() -> bool:
    """Whether the caller of this program has fewer rights than the program; False where the C library
    cannot say."""
    getauxval = getattr(ctypes.CDLL(None), "getauxval", None)
    if getauxval is None:
        return False
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    return bool(getauxval(_AT_SECURE))


def apply_environment(root: Node, env: Mapping[str, str]) -> list[Problem]:
    """Apply every `ASYS__...` variable, in the order of their names. Names of existing keys are
    matched without regard to case; new keys are lower-case."""
    problems: list[Problem] = []
    for name in sorted(env):
        if not name.startswith(ENV_PREFIX):
            continue
        origin = Origin(f"environment variable {name}")
        words = name.removeprefix(ENV_PREFIX).split("__")
        if not all(words):
            problems.append(
                Problem.at(origin, "has an empty part", fix=f"write {ENV_PREFIX}BUS__BACKEND=...")
            )
            continue
        path: Path = ()
        node: Node | None = root
        for word in words:
            keys = list(node.content) if node and isinstance(node.content, dict) else []
            part = next((key for key in keys if key.lower() == word.lower()), word.lower())
            path = (*path, part)
            node = node.child(_index(node, part)) if node else None
        problems += _assign(root, path, env[name], origin)
    return problems


def apply_sets(root: Node, sets: Sequence[str], option: str = "--set") -> list[Problem]:
    """Apply each `path=value` of `option`, in order."""
    problems: list[Problem] = []
    for text in sets:
        origin = Origin(f"{option} {text}")
        try:
            path, rest = parse_path(text)
        except ValueError:
            path, rest = (), text
        if not path or not rest.startswith("="):
            problems.append(
                Problem.at(origin, "must be path=value", fix=f"write {option} bus.capacity_mib=128")
            )
            continue
        problems += _assign(root, path, rest[1:], origin)
    return problems


def _assign(root: Node, path: Path, text: str, origin: Origin) -> list[Problem]:
    try:
        value = parse_document(text, origin.source, positions=False)
    except ConfigError as error:
        return list(error.problems)
    new = value if value is not None else Node(None, origin)
    new.key_origin = origin
    node = root
    walked: Path = ()
    for step, part in enumerate(path):
        last = step == len(path) - 1
        if node.content is None:
            node.content = {}
        part = _index(node, part)
        shown = format_path((*walked, part))
        if isinstance(node.content, list):
            size = len(node.content)
            if not isinstance(part, int) or part > size or (part == size and not last):
                message = f"a list of {size}: the next part must be an index"
                limit = size if last else size - 1
                valid = [f"0..{limit}"] if limit >= 0 else []
                return [Problem.at(origin, message, path=format_path(walked), value=part,
                                   valid=valid)]  # fmt: skip
            if last:
                node.content[part : part + 1] = [new]
                return []
            node = node.content[part]
        elif isinstance(node.content, dict):
            if isinstance(part, int):
                keys = list(node.content)
                return [Problem.at(origin, "a mapping, not a list", path=format_path(walked),
                                   value=part, valid=keys)]  # fmt: skip
            if last:
                node.content[part] = new
                return []
            node = node.content.setdefault(part, Node({}, origin, origin))
        else:
            return [Problem.at(origin, f"`{format_path(walked)}` is a single value and has no parts",
                               path=shown, value=node.content)]  # fmt: skip
        walked = (*walked, part)
    return []


def _index(node: Node, part: str | int) -> str | int:
    """`a.0` means index 0 when `a` is a list; `a[0]` means key "0" never."""
    if isinstance(node.content, list) and isinstance(part, str) and part.isdecimal():
        return int(part[:9])
    return part
