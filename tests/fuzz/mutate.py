"""Damage, drawn from a seeded generator: bytes, JSON trees and YAML texts. Nothing here knows a format."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

EDGES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WIDE = (*EDGES, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 10**6, 10**9, 10**12, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.0,
    -0.0, 0.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), "", " ", "a", "topk", "null",
    "yes", "1e3", "0x10", "../../etc/passwd", "/dev/zero", "a" * 5000, "\u0000", "\ud7ff\u202e", "é",
    "%s%n{0}", "*", "[", "a.b:c", "${HOME}", "1970-01-01",
)  # fmt: skip


def damage_bytes(data: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """One to four of: flip, overwrite, integers at the edge, cut, repeat, remove, splice from `other`."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not out:
            break
        # Mostly near the front, where headers are.
        span = len(out) if draw.random() < 0.5 else min(len(out), 2048)
        at = draw.randrange(span)
        kind = draw.randrange(8)
        if kind == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            size, form = draw.choice(((4, "<I"), (8, "<Q"), (2, "<H")))
            at = at // size * size
            limit = (1 << (8 * size)) - 1
            out[at : at + size] = struct.pack(form, draw.choice(WIDE) & limit)
        elif kind == 3:
            del out[draw.randrange(len(out)) :]
        elif kind == 4:
            end = min(len(out), at + draw.randint(1, 512))
            out[at:at] = out[at:end]
        elif kind == 5:
            del out[at : at + draw.randint(1, 512)]
        elif kind == 6:
            source = other or data
            start = draw.randrange(len(source))
            piece = source[start : start + draw.choice((8, 64, 512, 4096))]
            out[at : at + len(piece)] = piece
        else:
            out[at : at + draw.randint(1, 64)] = draw.randbytes(draw.randint(1, 64))
    return bytes(out)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node of a JSON tree, but the root's."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def wrong_value(draw: random.Random) -> Any:
    """Anything but what is wanted, most of the time."""
    kind = draw.randrange(8)
    if kind < 5:
        return draw.choice(SCALARS)
    if kind == 5:
        return [draw.choice(SCALARS) for _ in range(draw.randrange(4))]
    if kind == 6:
        return {str(draw.choice(SCALARS))[:40]: draw.choice(SCALARS)}
    nested: Any = 1
    for _ in range(draw.choice((3, 30, 60))):
        nested = [nested] if draw.random() < 0.5 else {"a": nested}
    return nested


def damage_tree(tree: Any, draw: random.Random, changes: int = 3) -> Any:
    """A copy with one to `changes` of: another value, a missing, strange or doubled entry."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.randint(1, changes)):
        found = list(places(tree))
        if not found:
            return wrong_value(draw)
        *above, last = draw.choice(found)
        holder = tree
        for key in above:
            holder = holder[key]
        kind = draw.randrange(6)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("x", "options", "kind", "", "a" * 200, str(last)[:-1]))] = (
                wrong_value(draw)
            )
        elif kind == 2 and isinstance(holder[last], int | float):
            holder[last] = draw.choice((-1, 0, 2, 10**6)) * holder[last]
        elif kind == 3 and isinstance(holder, list):
            holder.append(holder[last])
        else:
            holder[last] = wrong_value(draw)
    return tree
