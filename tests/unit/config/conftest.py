"""Plugins of every kind under names of their own, so that these tests need none of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from asys_bench.contracts.bus import BusCapabilities, BusOptions, BusPlugin, Delivery
from asys_bench.contracts.host import HostOptions, HostPlugin
from asys_bench.contracts.monitor import MonitorOptions, MonitorPlugin
from asys_bench.contracts.preprocessor import KernelOptions, KernelPlugin, Role
from asys_bench.contracts.sink import SinkOptions, SinkPlugin
from asys_bench.registry import Registry


class FakeHostOptions(HostOptions):
    env_id: str = "CartPole-v1"
    steps: int = Field(default=100, ge=1)


class FakeBusOptions(BusOptions):
    spin: bool = False


class Inner(BaseModel, extra="forbid", frozen=True):
    architecture: Literal["topk", "relu"] = "topk"
    k: int = Field(default=16, ge=1)


class FakeSinkOptions(SinkOptions):
    sae: Inner = Inner()
    overrides: dict[str, Inner] = Field(default_factory=dict)


class FakeKernelOptions(KernelOptions):
    dtype: Literal["float16", "bfloat16"] = "bfloat16"


def _never(*_: object) -> object:
    raise AssertionError("configuration never builds a plugin")


class _WithBroken(Registry):
    """Knows one more name, `broken`, that does not load."""

    def names(self) -> list[str]:
        return sorted([*self._loaded, "broken"])

    def _try_load(self, name: str):
        if name == "broken":
            self._failed["broken"] = "ImportError: no compiler"
            return None
        return self._loaded.get(name)


@pytest.fixture
def registries() -> Callable[[str], Registry]:
    found = {kind: _WithBroken(kind) for kind in ("host", "backend", "kernel", "sink", "monitor")}
    for name in ("toy", "other"):
        found["host"].register(HostPlugin(name, "a host", FakeHostOptions, _never))
    for name in ("mp_queue", "ring"):
        capabilities = BusCapabilities()
        found["backend"].register(
            BusPlugin(name, "a bus", capabilities, FakeBusOptions, _never, _never)
        )
    found["kernel"].register(
        KernelPlugin("identity", "raw", KernelOptions, _never, _never, role=Role.STAGE)
    )
    found["kernel"].register(KernelPlugin("cast", "cast", FakeKernelOptions, _never, _never))
    found["sink"].register(
        SinkPlugin("trainer", "trains", FakeSinkOptions, _never, Delivery.AT_MOST_ONCE)
    )
    found["monitor"].register(MonitorPlugin("log", "logs", MonitorOptions, _never))
    return found.__getitem__


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a file in the working directory and return its name."""
    monkeypatch.chdir(tmp_path)

    def _write(text: str | bytes, name: str = "c.yaml") -> str:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return _write


@pytest.fixture
def load(registries):
    """`load_config` with the test plugins and an empty environment."""
    from asys_bench.config import load_config

    def _load(path, sets=(), env=None):
        return load_config(path, sets, {} if env is None else env, registries)

    return _load
