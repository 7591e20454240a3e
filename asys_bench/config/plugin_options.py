"""Plugin options: checked by the plugins' own models and filled in with their defaults.

The selected plugins must load. Options of others are checked when those load and kept as they are
when they do not, so that one file can serve machines with different plugins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from asys_bench.config.diagnosis import diagnose, locate
from asys_bench.config.node import Node
from asys_bench.config.paths import Path, format_path
from asys_bench.config.plugin_access import Registries, options_model
from asys_bench.config.problems import Problem, did_you_mean
from asys_bench.config.sections.sinks import SinkConfig
from asys_bench.contracts.sink import SinkOptions
from asys_bench.registry import PluginError


@dataclass
class OptionCheck:
    """What checking all plugin options of one configuration found."""

    root: Node
    registries: Registries
    problems: list[Problem] = field(default_factory=list)
    resolved: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Path of an options mapping -> the options with the plugin's defaults filled in."""

    def run(self) -> None:
        """Check everything that has the right shape; the schema reports what has not."""
        self._selected("host", "kind", "host")
        self._selected("bus", "backend", "backend", default="mp_queue")
        self._entries("sinks", "sink")
        self._entries("monitors", "monitor")
        for path, node in self._steps():
            self._step(path, node)
        for index, hook in enumerate(_items(self.root.child("hooks"))):
            self._chain(index, _items(hook.child("preprocess")))

    def _selected(self, section: str, key: str, kind: str, default: str = "") -> None:
        """`host` and `bus`: the chosen plugin and a mapping of options by plugin name."""
        node = self.root.child(section)
        if node is None:
            if default:
                self._check(kind, default, (section,), (section, "options", default), True)
            return
        chosen = node.child(key)
        name = chosen.content if chosen else default
        if isinstance(name, str) and name:
            path = (section, key) if chosen else (section,)
            self._check(kind, name, path, (section, "options", name), True)
        options = node.child("options")
        if options is not None and isinstance(options.content, dict):
            for other in options.content:
                if other != name:
                    place = (section, "options", other)
                    self._check(kind, other, place, place, False)

    def _entries(self, section: str, kind: str) -> None:
        """`sinks` and `monitors`: a mapping of entries with a kind and options each."""
        node = self.root.child(section)
        for name in node.content if node and isinstance(node.content, dict) else ():
            entry = node.child(name) if node else None
            chosen = entry.child("kind") if entry else None
            enabled = entry.child("enabled") if entry else None
            if chosen is not None and isinstance(chosen.content, str) and chosen.content:
                needed = enabled is None or enabled.content is not False
                path = (section, name)
                options = self._check(
                    kind, chosen.content, (*path, "kind"), (*path, "options"), needed
                )
                if needed and isinstance(options, SinkOptions):
                    self._misfits(path, options)

    def _misfits(self, path: Path, options: SinkOptions) -> None:
        """What the options say does not go with the rest of their sink's section."""
        node = _at(self.root, path)
        data = node.to_data() if node is not None else {}
        try:
            sink = SinkConfig.model_validate(data)
        except ValidationError:
            return  # reported by the schema
        for misfit in options.misfits(sink.workers, sink.hooks):
            place = (*path, *misfit.path)
            self.problems.append(
                Problem.at(
                    locate(self.root, place)[1],
                    misfit.message,
                    path=format_path(place),
                    value=misfit.value,
                    fix=misfit.fix,
                )
            )

    def _steps(self) -> Iterator[tuple[Path, Node]]:
        hooks = self.root.child("hooks")
        for index, hook in enumerate(_items(hooks)):
            chain = hook.child("preprocess")
            if chain is not None and not isinstance(chain.content, list):
                yield ("hooks", index, "preprocess"), chain
            for step, node in enumerate(_items(chain)):
                yield ("hooks", index, "preprocess", step), node

    def _step(self, path: Path, node: Node) -> None:
        if isinstance(node.content, str) and node.content:
            self._check("kernel", node.content, path, path, True)
        elif isinstance(node.content, dict) and len(node.content) == 1:
            (name,) = node.content
            self._check("kernel", name, (*path, name), (*path, name), True)

    def _chain(self, hook: int, steps: list[Node]) -> None:
        """A hook's preprocessors, in order; one that does not load is reported elsewhere."""
        names = [name for node in steps if (name := _step_name(node)) is not None]
        if len(names) != len(steps):
            return
        from asys_bench.contracts.chain import refusal  # both import torch
        from asys_bench.contracts.preprocessor import KernelPlugin

        try:
            plugins = [self.registries("kernel").get(name, KernelPlugin) for name in names]
        except PluginError:
            return
        refused = refusal([(plugin.name, plugin.role) for plugin in plugins])
        if refused is None:
            return
        path: Path = ("hooks", hook, "preprocess")
        match = _at(self.root, ("hooks", hook, "match"))
        globs = match.to_data() if match is not None else None
        rule = f" of the hook on {globs}" if globs else ""
        self.problems.append(
            Problem.at(
                locate(self.root, path)[1],
                f"the chain{rule} {refused[0]}",
                path=format_path(path),
                value=" -> ".join(names),
                fix=refused[1],
            )
        )

    def _check(
        self, kind: str, name: str, name_path: Path, path: Path, needed: bool
    ) -> BaseModel | None:
        """The options at `path`, None if they are wrong; the plugin's name stands at `name_path`."""
        plugins = self.registries(kind)
        try:
            model = options_model(kind, name, self.registries)
        except PluginError as error:
            known = name in plugins.names()
            if known and not needed:
                return None
            node, origin = locate(self.root, name_path)
            if isinstance(node.content, dict) and node.key_origin is not None:
                origin = node.key_origin
            names = [other for other in plugins.names() if other != name]
            message = str(error) if known else f"no {kind} plugin of this name"
            fix = "install what it needs or choose another" if known else did_you_mean(name, names)
            if not known and not fix:
                fix = "use a valid name or install the plugin that has this one"
            self.problems.append(
                Problem.at(
                    origin, message, path=format_path(name_path), value=name, fix=fix, valid=names
                )
            )
            return None
        given = _at(self.root, path)
        data = given.to_data() if given is not None else {}
        if data is None or isinstance(data, str):  # an empty key, or a step without options
            data = {}
        if not isinstance(data, dict):
            return None
        try:
            built = model.model_validate(data)
        except ValidationError as error:
            self.problems += diagnose(error, model, self.root, path)
            return None
        self.resolved[path] = built.model_dump(mode="json", by_alias=True)
        return built

    def write_resolved(self, plain: dict[str, Any]) -> None:
        """Put the resolved options into a configuration's plain data."""
        for path, options in self.resolved.items():
            match path:
                case ("hooks", int(index), "preprocess", *rest):
                    step = rest[0] if rest and isinstance(rest[0], int) else 0
                    chain = plain["hooks"][index]["preprocess"]
                    entry = chain[step]
                    name = entry if isinstance(entry, str) else next(iter(entry))
                    chain[step] = {name: options} if options else name
                case (str(section), "options", str(name)):
                    plain[section]["options"][name] = options
                case (str(section), str(entry), "options"):
                    plain[section][entry]["options"] = options


def _items(node: Node | None) -> list[Node]:
    return list(node.content) if node is not None and isinstance(node.content, list) else []


def _step_name(node: Node) -> str | None:
    if isinstance(node.content, str):
        return node.content
    if isinstance(node.content, dict) and len(node.content) == 1:
        return str(next(iter(node.content)))
    return None


def _at(root: Node, path: Path) -> Node | None:
    node: Node | None = root
    for part in path:
        node = node.child(part) if node is not None else None
    return node
