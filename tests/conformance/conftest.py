"""Fixtures of the bus suite: every registered backend, by its capabilities."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asys_bench.contracts.bus import BusPlugin
from asys_bench.registry import registry

from .chosen import backends
from .processes import Nursery
from .support import Buses


def pytest_configure(config: pytest.Config) -> None:
    """The suite also runs without this repository's pytest settings (`asys_bench.conformance`)."""
    config.addinivalue_line("markers", "rest: slow; `make test` of A-Sys-I leaves it out")


FULL_PASS = "cpp_spmc"
"""The bus that `make test` sends through the slow modules too."""
SLOW_MODULES = ("test_bus_extremes", "test_bus_attached_producers", "test_odd_tensors")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the slow modules, other buses' tests are `rest`."""
    for item in items:
        called = getattr(item, "callspec", None)
        names = (
            {value for value in called.params.values() if isinstance(value, str)}
            if called
            else set()
        )
        if item.path.stem in SLOW_MODULES and names & {*backends()} - {FULL_PASS}:
            item.add_marker("rest")


@pytest.fixture(params=backends())
def any_plugin(request: pytest.FixtureRequest) -> BusPlugin:
    """Each backend that can run here."""
    plugin = registry("backend").get(request.param, BusPlugin)
    reason = plugin.unavailable()
    if reason is not None:
        pytest.skip(f"{plugin.name}: {reason}")
    return plugin


@pytest.fixture
def plugin(any_plugin: BusPlugin) -> BusPlugin:
    """Each backend that transports payloads."""
    if not any_plugin.capabilities.transports_payload:
        pytest.skip(f"{any_plugin.name} transports nothing")
    return any_plugin


@pytest.fixture
def make_bus(plugin: BusPlugin) -> Iterator[Buses]:
    """Builds buses; closes them at the end."""
    buses = Buses(plugin)
    yield buses
    buses.close()


@pytest.fixture
def shared_bus(make_bus: Buses) -> Buses:
    """As `make_bus`, for backends that other processes can attach to."""
    if not make_bus.plugin.capabilities.cross_process:
        pytest.skip(f"{make_bus.plugin.name} lives in one process")
    return make_bus


@pytest.fixture
def killable_bus(shared_bus: Buses) -> Buses:
    """As `shared_bus`, for backends that survive a killed consumer."""
    if not shared_bus.plugin.capabilities.survives_consumer_kill:
        pytest.skip(f"{shared_bus.plugin.name} does not survive a killed consumer")
    return shared_bus


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def nursery(_nursery: Nursery) -> Iterator[Nursery]:
    """Starts processes in milliseconds; ends each of them by its id after the test."""
    yield _nursery
    _nursery.end_children()
