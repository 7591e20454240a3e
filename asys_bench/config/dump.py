"""A configuration as YAML text, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from asys_bench.config.document import parse_document
from asys_bench.config.paths import format_path
from asys_bench.config.problems import Origin
from asys_bench.config.schema import MasterConfig


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper without anchors, with list items indented under their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def dump_yaml(config: MasterConfig, provenance: Mapping[str, Origin] | None = None) -> str:
    """The whole configuration; loading the text gives an equal one.

    With `provenance` each value ends in a comment saying where it came from.
    """
    text = yaml.dump(
        config.to_plain(),
        Dumper=_PlainDumper,
        sort_keys=False,
        allow_unicode=False,  # U+0085 and its like would come back as line breaks
        default_flow_style=False,
        width=1 << 16,
    )
    return text if provenance is None else _annotate(text, provenance)


def config_sha256(config: MasterConfig) -> str:
    """Hex SHA-256 of the resolved configuration; equal configurations have equal ones."""
    canonical = json.dumps(config.to_plain(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _annotate(text: str, provenance: Mapping[str, Origin]) -> str:
    tree = parse_document(text, "dump")
    lines = text.splitlines()
    for path, node in tree.leaves() if tree is not None else ():
        line = (node.origin.line or 1) - 1
        if "\n" in str(node.content):  # a comment inside a multi-line value would become part of it
            continue
        origin = provenance.get(format_path(path))
        lines[line] += f"  # {_one_line(origin) if origin is not None else 'default'}"
    return "\n".join(lines) + "\n"


def _one_line(origin: Origin) -> str:
    return " ".join(str(origin).split())
