"""An inline launcher, and backends with one fault in many packets."""

from __future__ import annotations

import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asys_bench.backends.memcpy.bus import MemcpyBus
from asys_bench.backends.memcpy.plugin import plugin as memcpy
from asys_bench.contracts.bus import BusProducer, DropReason, Payload, Reservation
from asys_bench.contracts.packet import PacketMeta
from asys_bench.harness.measuring.child import ProcessEnd
from asys_bench.harness.measuring.launch import RoundEnd, _collect
from asys_bench.harness.planning.suite_file import load_suite
from asys_bench.harness.plugins import scenario_plugin
from asys_bench.harness.results.result import Instrument
from asys_bench.harness.round import RoundRunner, RoundSpec, run_round
from asys_bench.harness.runner import SuiteRunner
from asys_bench.registry import registry


class InlineLauncher:
    """Runs rounds in the test's own process."""

    def __init__(self, before: Callable[[RoundSpec], None] | None = None) -> None:
        self.specs: list[RoundSpec] = []
        self._before = before

    def run(self, spec: RoundSpec, timeout_s: float) -> RoundEnd:
        self.specs.append(spec)
        if self._before is not None:
            self._before(spec)
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            code = 0
            try:
                run_round(replace(spec, folder=folder))
            except Exception as error:  # noqa: BLE001 - what a round's process would print
                (Path(folder) / "log").write_text(f"{type(error).__name__}: {error}")
                code = 1
            end = ProcessEnd(1, code)
            return _collect(Path(folder), end, time.monotonic() - started, timeout_s)

    def close(self) -> None:
        return None


FAULTY_PACKET = 777


class FaultyProducer(BusProducer):
    """Does one wrong thing, at packet 777."""

    def __init__(self, inner: BusProducer, fault: str) -> None:
        self.shard = inner.shard
        self._inner, self._fault = inner, fault
        self._count = -1
        self._held: tuple[PacketMeta, Any] | None = None

    @property
    def last_refusal(self) -> DropReason | None:
        return self._inner.last_refusal

    def try_push(self, meta: PacketMeta, payload: Payload) -> bool:
        return self.push(meta, payload, 1.0)

    def push(self, meta: PacketMeta, payload: Payload, timeout_s: float) -> bool:
        self._count += 1
        if self._count == FAULTY_PACKET:
            if self._fault == "lose":
                return True
            if self._fault == "tear":
                payload = np.array(payload)
                payload[len(payload) // 2] ^= 1
            if self._fault == "duplicate":
                self._inner.push(meta, payload, timeout_s)
            if self._fault == "swap":
                self._held = meta, np.array(payload)
                return True
        accepted = self._inner.push(meta, payload, timeout_s)
        if self._held is not None:
            held, self._held = self._held, None
            self._inner.push(*held, timeout_s)
        return accepted

    def reserve(self, nbytes: int) -> Reservation | None:
        return self._inner.reserve(nbytes)


def faulty_backend(fault: str) -> Any:
    class FaultyBus(MemcpyBus):
        def producer(self, shard: int = 0) -> Any:
            return FaultyProducer(super().producer(shard), fault)

    return replace(memcpy, name=f"faulty_{fault}", build=FaultyBus)


@pytest.fixture(autouse=True)
def own_registries() -> Iterator[None]:
    """Plugins that a test registers go away with it."""
    kinds = ("backend", "scenario", "host")
    before = {kind: dict(registry(kind)._loaded) for kind in kinds}
    yield
    for kind in kinds:
        registry(kind)._loaded.clear()
        registry(kind)._loaded.update(before[kind])


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def run_suite(tmp_path: Path, suite_file: Callable[[str], Path]) -> Callable[..., SuiteRunner]:
    """A runner of a suite given as text, in this process, with a free instrument."""

    def make(text: str, launcher: Any = None) -> SuiteRunner:
        loaded = load_suite(suite_file(text))
        return SuiteRunner(
            loaded,
            tmp_path / "out",
            ["test"],
            launcher=launcher or InlineLauncher(),
            instrument=lambda: Instrument(
                timer="none", timer_cost_ns=50.0, timer_resolution_ns=1.0, floors=[]
            ),
        )

    return make


def round_of(name: str, params: dict[str, Any], tmp_path: Path) -> dict[str, float]:
    """The medians of one round of a scenario that takes neither bus nor pipeline, in this process."""
    plugin = scenario_plugin(name)
    spec = RoundSpec(
        folder=str(tmp_path), scenario=name, backend=None, pipeline=None, sets=[], params=params,
        samples=1, seed=5, warmup_max_s=0.0,
    )  # fmt: skip
    runner = RoundRunner(spec, plugin, tmp_path)
    plugin.run(runner)
    document, _ = runner.results()
    return {metric: value["median"] for metric, value in document["values"].items()}
