"""Plugins that can run here; the others are skipped with their reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from asys_bench.contracts.bus import BaseDataBus, BusPlugin, BusRequest, Delivery, GroupSpec
from asys_bench.contracts.preprocessor import KernelPlugin, Preprocessor
from asys_bench.registry import registry

BACKENDS = [name for name in registry("backend").names() if name not in ("null", "memcpy")]
KERNELS = registry("kernel").names()
GROUP = "bench"


@contextlib.contextmanager
def bus_of(name: str, *, groups: bool = True) -> Iterator[BaseDataBus]:
    """A bus with one group (or none: nothing waits for a reader)."""
    plugin = registry("backend").get(name, BusPlugin)
    reason = plugin.unavailable()
    if reason is not None:
        pytest.skip(reason)
    specs = (GroupSpec(GROUP, Delivery.AT_MOST_ONCE),) if groups else ()
    request = BusRequest(specs, capacity_packets=1024, capacity_bytes=64 << 20, names=("hook",))
    bus = plugin.build(request)
    try:
        yield bus
    finally:
        bus.close()


def encoder_of(name: str) -> tuple[Preprocessor, KernelPlugin]:
    """A preprocessor with its default options."""
    plugin = registry("kernel").get(name, KernelPlugin)
    reason = plugin.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return plugin.build(plugin.options()), plugin
