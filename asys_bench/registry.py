"""One registry for every kind of plugin. Entry points name them; nothing registers by import.

A plugin is an object exported by its package under an entry point `asys.<kind>`. It is loaded when
first asked for and validated against the kind's type. One that fails to load never breaks the
others: it is listed with its reason.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

GROUP_PREFIX = "asys."
KINDS = ("backend", "kernel", "host", "sink", "monitor", "reporter", "scenario")


class Plugin(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...


P = TypeVar("P", bound=Plugin)


class PluginError(LookupError):
    """No such plugin, or it failed to load; the message names the valid ones and the reason."""


class UnknownPluginError(PluginError):
    """No plugin has that name."""


@dataclass
class Registry:
    """All plugins of one kind: entry points plus those registered by hand (tests, notebooks)."""

    kind: str
    _loaded: dict[str, Any] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _entries: dict[str, importlib.metadata.EntryPoint] | None = None
    """What is installed does not change while a process lives, and looking takes some 20 ms."""

    def register(self, plugin: Plugin) -> None:
        """Add a plugin of this process. It takes precedence over an entry point of its name."""
        self._validate(plugin.name, plugin, "register()")
        self._loaded[plugin.name] = plugin

    def names(self) -> list[str]:
        """Every known name, loadable or not."""
        return sorted({*self._entry_points(), *self._loaded})

    def failures(self) -> dict[str, str]:
        """name -> why it did not load, after trying all of them."""
        for name in self.names():
            self._try_load(name)
        return dict(self._failed)

    def get(self, name: str, expected: type[P]) -> P:
        """The plugin called `name`.

        Raises:
            UnknownPluginError: unknown name; lists the valid ones.
            PluginError: it fails to load, or is of another type; says why.
        """
        plugin = self._try_load(name)
        if plugin is None:
            if name in self._failed:
                raise PluginError(f"{self.kind} {name!r} does not load: {self._failed[name]}")
            valid = ", ".join(self.names())
            raise UnknownPluginError(f"no {self.kind} named {name!r}; valid: {valid}")
        if not isinstance(plugin, expected):
            raise PluginError(
                f"{self.kind} {name!r} is a {type(plugin).__name__}, not a {expected.__name__}"
            )
        return plugin

    def _try_load(self, name: str) -> Plugin | None:
        if name in self._loaded:
            found: Plugin = self._loaded[name]
            return found
        entry = self._entry_points().get(name)
        if entry is None or name in self._failed:
            return None
        try:
            plugin: Plugin = entry.load()
            self._validate(name, plugin, entry.value)
        except Exception as error:  # noqa: BLE001 - a plugin may fail in any way; it is listed, not raised
            self._failed[name] = f"{type(error).__name__}: {error} ({entry.value})"
            return None
        self._loaded[name] = plugin
        return plugin

    def _validate(self, name: str, plugin: object, where: str) -> None:
        for attribute in ("name", "summary"):
            if not isinstance(getattr(plugin, attribute, None), str):
                raise PluginError(f"{self.kind} {name!r} ({where}) has no str `{attribute}`")
        own = getattr(plugin, "name", None)
        if own != name:
            raise PluginError(
                f"{self.kind} entry point {name!r} ({where}) exports a plugin {own!r}"
            )

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        if self._entries is None:
            found = importlib.metadata.entry_points(group=GROUP_PREFIX + self.kind)
            self._entries = {entry.name: entry for entry in found}
        return self._entries


_REGISTRIES = {kind: Registry(kind) for kind in KINDS}


def registry(kind: str) -> Registry:
    """The registry of `kind`.

    Raises:
        PluginError: no such kind.
    """
    try:
        return _REGISTRIES[kind]
    except KeyError:
        raise PluginError(f"no plugin kind {kind!r}; valid: {', '.join(KINDS)}") from None
