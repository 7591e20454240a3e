"""The registry: explicit, validated, and one broken plugin never hides the others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from asys_bench.registry import PluginError, Registry, UnknownPluginError, registry


@dataclass(frozen=True)
class Toy:
    name: str
    summary: str = "a toy"


def with_entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> Registry:
    found = {name: EntryPoint(name, value, "asys.toy") for name, value in values.items()}
    monkeypatch.setattr(Registry, "_entry_points", lambda self: found)
    return Registry("toy")


def test_an_unknown_name_lists_the_valid_ones() -> None:
    toys = Registry("toy")
    toys.register(Toy("a"))
    toys.register(Toy("b"))
    with pytest.raises(UnknownPluginError, match="no toy named 'c'; valid: a, b"):
        toys.get("c", Toy)


def test_a_plugin_that_does_not_load_is_listed_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toys = with_entry_points(monkeypatch, broken="no.such.module:plugin")
    toys.register(Toy("fine"))
    assert toys.names() == ["broken", "fine"]
    assert "No module named 'no'" in toys.failures()["broken"]
    assert toys.get("fine", Toy).name == "fine"
    with pytest.raises(PluginError, match="does not load") as caught:
        toys.get("broken", Toy)
    assert not isinstance(caught.value, UnknownPluginError)


def test_an_entry_point_must_export_a_plugin_of_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toys = with_entry_points(monkeypatch, other="asys_bench.kernels.cast.kernel:plugin")
    assert "exports a plugin 'cast'" in toys.failures()["other"]


def test_a_plugin_of_the_wrong_type_is_refused() -> None:
    toys = Registry("toy")
    toys.register(Toy("a"))
    with pytest.raises(PluginError, match="is a Toy, not a int"):
        toys.get("a", int)  # type: ignore[type-var]
    with pytest.raises(PluginError, match="no str `summary`"):
        toys.register(Toy("x", summary=None))  # type: ignore[arg-type]


def test_an_unknown_kind_lists_the_valid_ones() -> None:
    with pytest.raises(PluginError, match="backend, kernel, host"):
        registry("engine")
