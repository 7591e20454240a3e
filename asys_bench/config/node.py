"""The merged configuration as a tree that remembers where every value and key came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from asys_bench.config.paths import Path
from asys_bench.config.problems import Origin


@dataclass(slots=True)
class Node:
    """A scalar, a list of nodes or a mapping of nodes."""

    content: Any
    origin: Origin
    key_origin: Origin | None = None
    """Where its key stands, for values of a mapping."""

    def to_data(self) -> Any:
        """Plain data without origins."""
        if isinstance(self.content, dict):
            return {key: node.to_data() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.to_data() for node in self.content]
        return self.content

    def child(self, part: str | int) -> Node | None:
        if isinstance(self.content, dict):
            found: Node | None = self.content.get(part)
            return found
        if isinstance(self.content, list) and isinstance(part, int):
            return self.content[part] if 0 <= part < len(self.content) else None
        return None

    def leaves(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Scalars and empty containers, with their paths."""
        if isinstance(self.content, dict) and self.content:
            for key, node in self.content.items():
                yield from node.leaves((*path, key))
        elif isinstance(self.content, list) and self.content:
            for index, node in enumerate(self.content):
                yield from node.leaves((*path, index))
        else:
            yield path, self


def plain_node(data: Any, origin: Origin) -> Node:
    """`data` (dicts, lists, scalars) as a tree with one origin."""
    if isinstance(data, dict):
        content: Any = {key: plain_node(value, origin) for key, value in data.items()}
    elif isinstance(data, list):
        content = [plain_node(value, origin) for value in data]
    else:
        content = data
    return Node(content, origin, origin)


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings merge key by key, everything else (lists too) is replaced."""
    if not (isinstance(base.content, dict) and isinstance(over.content, dict)):
        return over
    merged = dict(base.content)
    for key, node in over.content.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, over.origin, over.key_origin)
