"""One YAML document -> a tree with file, line and column for every value.

Only what `yaml.safe_load` would build is built. Unlike it, a key given twice is an error, and size,
depth and alias expansion are bounded, so that no file can exhaust the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from asys_bench.config.node import Node
from asys_bench.config.problems import NOTHING, ConfigError, Origin, Problem
from asys_bench.contracts.run_files import CONFIG_FILE
from asys_bench.system.files.below import read_file

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 100_000
"""Nodes after aliases are expanded."""

REMOVED_SAE_OPTIONS = ("lr_decay_steps", "lr_tracking", "survival_cosine")
REMOVED_OPTIONS = (
    "device.encode_on",
    "bus.options.*.calibrate_ms",
    "bus.options.*.prefault",
    "bus.options.*.socket_buffer_bytes",
    "hooks*.sampling.seed",
    "sinks.*.options.max_packets",
    "sinks.*.options.linger_s",
    "sinks.*.options.train_slice_s",
    *(
        f"*.{name}" for name in REMOVED_SAE_OPTIONS
    ),  # of `sae`, `overrides`, `variants`, transcoders
)
"""Options of earlier versions, as globs of paths; CHANGELOG.md says why each is gone. A run's own
config.yaml of that time may hold them."""

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAP_TAG = "tag:yaml.org,2002:map"
_SEQ_TAG = "tag:yaml.org,2002:seq"


class _BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses deep nesting before Python's own stack does."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_document(path: Path, shown: str) -> Node:
    """The tree of the file at `path`, called `shown` in messages.

    Raises:
        ConfigError: unreadable, not YAML, not a mapping, or past a limit.
    """
    file = Origin(shown)
    try:
        if not path.is_file():
            raise ConfigError([Problem.at(file, "is not a regular file")])
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem.at(file, f"cannot be read: {error.strerror}")]) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            [Problem.at(file, f"is larger than {MAX_BYTES} bytes", fix="split it with `extends`")]
        )
    return _mapping_of(raw, shown)


def read_run_config(run_dir: Path) -> Node:
    """The tree of a run's own config.yaml, which extends nothing, without options that are gone by now.

    Raises:
        ConfigError: as `read_document`, or a link is on the way to it.
    """
    path = run_dir / CONFIG_FILE
    try:
        raw = read_file(path, MAX_BYTES, below=run_dir)
    except OSError as error:
        raise ConfigError(
            [Problem.at(Origin(str(path)), f"cannot be read: {error.strerror}")]
        ) from None
    root = _mapping_of(raw, str(path))
    extends = root.content.pop("extends", None)
    if extends is not None:
        raise ConfigError([Problem.at(extends.origin, "a run's own configuration extends nothing")])
    _leave_out_removed(root, "")
    return root


def is_removed(path: str) -> bool:
    """Whether `path` ("device.encode_on") is an option that an earlier version had."""
    return any(fnmatchcase(path, pattern) for pattern in REMOVED_OPTIONS)


def _leave_out_removed(node: Node, path: str) -> None:
    if isinstance(node.content, dict):
        for key in [key for key in node.content if is_removed(f"{path}{key}")]:
            del node.content[key]
        for key, child in node.content.items():
            _leave_out_removed(child, f"{path}{key}.")
    elif isinstance(node.content, list):
        for child in node.content:
            _leave_out_removed(child, path)


def run_config_data(run_dir: Path) -> dict[str, Any]:
    """A run's own config.yaml as plain data; empty when it cannot be read."""
    try:
        found = read_run_config(run_dir).to_data()
    except ConfigError:
        return {}
    return found if isinstance(found, dict) else {}


def host_options(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(kind of the host, its options of that kind) of a configuration as plain data; ("", {}) where it does
    not say."""
    host = config.get("host")
    host = host if isinstance(host, Mapping) else {}
    kind, options = host.get("kind"), host.get("options")
    kind = kind if isinstance(kind, str) else ""
    mine = options.get(kind) if isinstance(options, Mapping) else None
    return kind, mine if isinstance(mine, Mapping) else {}


def enabled_sinks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sinks of a configuration as plain data; none where that has no such section."""
    sinks = config.get("sinks")
    return {
        name: sink for name, sink in (sinks.items() if isinstance(sinks, dict) else ())
        if isinstance(sink, dict) and sink.get("enabled", True)
    }  # fmt: skip


def _mapping_of(raw: bytes, shown: str) -> Node:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        origin = Origin(shown, before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1)
        raise ConfigError(
            [Problem.at(origin, "is not UTF-8 text", fix="save the file as UTF-8")]
        ) from None
    root = parse_document(text, shown)
    if root is None:
        raise ConfigError(
            [Problem.at(Origin(shown, 1, 1), "is empty", fix="start with `extends: base.yaml`")]
        )
    if not isinstance(root.content, dict):
        raise ConfigError(
            [
                Problem.at(
                    root.origin,
                    "must be a mapping of sections (run:, host:, bus:, ...)",
                    value=root.to_data(),
                    fix="start with `extends: base.yaml`",
                )
            ]
        )
    return root


def parse_document(text: str, shown: str, positions: bool = True) -> Node | None:
    """The tree of a YAML text; None when there is nothing in it.

    Raises:
        ConfigError: not YAML, or past a limit.
    """
    try:
        loader = _BoundedLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        origin = Origin(shown, line, column) if positions else Origin(shown)
        message = (
            f"is not a text file: character {int(error.character):#04x} is not allowed in YAML"
        )
        raise ConfigError([Problem.at(origin, message)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = _origin(shown, mark) if positions and mark else Origin(shown)
        context = f" {error.context}" if error.context else ""
        raise ConfigError(
            [Problem.at(origin, f"is not valid YAML: {error.problem or 'malformed'}{context}")]
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ConfigError([Problem.at(Origin(shown), f"is not valid YAML: {error}")]) from None
    if root is None:
        return None
    builder = _Builder(shown, positions)
    tree = builder.build(root)
    if builder.problems:
        raise ConfigError(builder.problems)
    return tree


def _origin(shown: str, mark: Any) -> Origin:
    return Origin(shown, mark.line + 1, mark.column + 1)


class _Builder:
    """YAML nodes -> tree, collecting every problem."""

    def __init__(self, shown: str, positions: bool) -> None:
        self.problems: list[Problem] = []
        self._shown = shown
        self._positions = positions
        self._scalars = yaml.constructor.SafeConstructor()
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node) -> Node:
        origin = self._at(node)
        self._count += 1
        if self._count > MAX_NODES:
            message = f"expands to more than {MAX_NODES} values (aliases inside aliases?)"
            raise ConfigError([*self.problems, Problem.at(origin, message)])
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node), origin)
        if id(node) in self._open:
            raise ConfigError([*self.problems, Problem.at(origin, "an alias contains itself")])
        self._open.add(id(node))
        expected = _SEQ_TAG if isinstance(node, yaml.SequenceNode) else _MAP_TAG
        if node.tag != expected:
            self._problem(node, f"tag {_tag(node)} is not allowed", "remove the tag")
        if isinstance(node, yaml.SequenceNode):
            content: Any = [self.build(item) for item in node.value]
        else:
            content = self._mapping(node)
        self._open.discard(id(node))
        return Node(content, origin)

    def _mapping(self, node: yaml.Node) -> dict[str, Node]:
        content: dict[str, Node] = {}
        inherited: list[dict[str, Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                inherited += self._merged(value_node)
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else key_node
            if not isinstance(key, str):
                shown = NOTHING if isinstance(key, yaml.Node) else key
                self._problem(key_node, "a key must be text", "put it in quotes", shown)
                continue
            if key in content:
                first = content[key].key_origin
                self._problem(
                    key_node, f"key `{key}` is given twice (first at {first})", "remove one of them"
                )
                continue
            content[key] = self.build(value_node)
            content[key].key_origin = self._at(key_node)
        for mapping in inherited:
            for key, value in mapping.items():
                content.setdefault(key, value)
        return content

    def _merged(self, node: yaml.Node) -> list[dict[str, Node]]:
        """The mappings behind a `<<` key; earlier ones win."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found = [self.build(source).content for source in sources]
        if not all(isinstance(content, dict) for content in found):
            self._problem(node, "`<<` takes a mapping or a list of mappings", "name an anchor (&x)")
        return [content for content in found if isinstance(content, dict)]

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._scalars.construct_object(node)
        except yaml.constructor.ConstructorError:
            self._problem(node, f"tag {_tag(node)} is not allowed", "remove the tag")
        except (ValueError, OverflowError, KeyError, AttributeError, TypeError) as error:
            self._problem(node, f"cannot be read: {error}", "put it in quotes if it is text")
        return None

    def _at(self, node: yaml.Node) -> Origin:
        return _origin(self._shown, node.start_mark) if self._positions else Origin(self._shown)

    def _problem(self, node: yaml.Node, message: str, fix: str, value: object = NOTHING) -> None:
        self.problems.append(Problem.at(self._at(node), message, fix=fix, value=value))


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")
