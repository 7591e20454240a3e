"""Entry point of the null backend."""

from __future__ import annotations

from asys_bench.backends.null.bus import NullBus, attach
from asys_bench.contracts.bus import BusCapabilities, BusOptions, BusPlugin


class NullOptions(BusOptions):
    """The backend has no options of its own."""


plugin = BusPlugin(
    name="null",
    summary="Counts packets and throws them away: what a hook costs without a bus",
    capabilities=BusCapabilities(transports_payload=False, cross_process=False),
    options=NullOptions,
    build=NullBus,
    attach=attach,
    metrics={"push_latency_us": "lower"},
)
