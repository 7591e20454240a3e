"""`PrometheusMonitor`: the run as Prometheus metrics, from one exporter process.

`<run_dir>/prometheus.json` says where it listens, in the format of Prometheus's file-based service
discovery: a server with ``file_sd_configs: [{files: [".../runs/*/prometheus.json"]}]`` finds every
run by itself. A port that is taken is no reason for a run to fail: another one is used and recorded.
docs/metrics.md lists the metrics; /healthz answers 503 once a worker is quarantined.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import Field

from asys_bench.contracts.monitor import (
    BaseMonitor,
    MonitorContext,
    MonitorOptions,
    MonitorPlugin,
)
from asys_bench.contracts.run_files import EXPORTER_FILE, RunFileError, read_run_file
from asys_bench.contracts.stats import RunState, WorkerState
from asys_bench.monitors.prometheus_server import MetricsServer, Reply
from asys_bench.monitors.snapshot import RunSnapshot, take_snapshot
from asys_bench.system.files.atomic import replace_file

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)


class PrometheusOptions(MonitorOptions):
    """Options of the `prometheus` monitor."""

    address: str = Field(
        "127.0.0.1",
        min_length=1,
        max_length=255,
        description="Address to listen on. Anyone who reaches it can read the metrics: leave it at "
        "the loopback unless a firewall or a container network stands in front.",
    )
    port: int = Field(
        9464,
        ge=0,
        le=65535,
        description="Port to listen on; 0 takes a free one. The one in use is in the run's "
        "prometheus.json.",
    )
    max_label_values: int = Field(
        500,
        ge=1,
        le=100_000,
        description="Most values of one label (hooks, workers, ...); further ones are left out and "
        "counted, so that a run cannot flood the database.",
    )


class PrometheusMonitor(BaseMonitor):
    """See the module. A scrape reads the stats page then and there; nothing happens between scrapes."""

    interval_s = 1.0

    def __init__(self, options: PrometheusOptions) -> None:
        self._options = options
        self._server: MetricsServer | None = None
        self._registry: CollectorRegistry | None = None
        self._lock = threading.Lock()  # one reader of the page at a time, and none after `close`

    def open(self, context: MonitorContext) -> None:
        """Listen, and write prometheus.json in the run directory.

        Raises:
            OSError: the address cannot be bound at all.
        """
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import generate_latest

        from asys_bench.monitors.prometheus_collector import RunCollector, RunFacts

        generate_latest(CollectorRegistry())  # the first scrape need not wait for its imports
        self._context = context
        facts = RunFacts(context.run_id, _started_s(context), _capacity(context.config))
        self._registry = CollectorRegistry()
        self._registry.register(RunCollector(self._snapshot, facts, self._options.max_label_values))
        self._server = self._listen()
        self._record(self._server.target)

    @property
    def target(self) -> str:
        """host:port it listens on; empty when it does not."""
        return self._server.target if self._server is not None else ""

    def _listen(self) -> MetricsServer:
        address, port = self._options.address, self._options.port
        try:
            return MetricsServer(address, port, self._metrics, self._health)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
        server = MetricsServer(address, 0, self._metrics, self._health)
        log.warning(
            "port %d is taken (another run?): listening on %s instead, as %s says",
            port,
            server.target,
            EXPORTER_FILE,
        )
        return server

    def _record(self, target: str) -> None:
        path = self._context.run_dir / EXPORTER_FILE
        document = [{"targets": [target], "labels": {"run_id": self._context.run_id}}]
        try:
            replace_file(path, (json.dumps(document) + "\n").encode(), sync=False)
        except OSError as error:
            log.warning("%s is not written, the exporter listens on %s: %s", path, target, error)

    def _snapshot(self) -> RunSnapshot:
        return take_snapshot(self._context.page, self._context.account)

    def _metrics(self, accept: str) -> Reply:
        from prometheus_client.exposition import choose_encoder

        with self._lock:
            if self._registry is None:
                return Reply(b"the run has ended\n", status=503)
            encode, content_type = choose_encoder(accept)
            return Reply(encode(self._registry), content_type)

    def _health(self) -> tuple[bool, Mapping[str, Any]]:
        """(well, report): not well once a worker is quarantined or the run has stopped."""
        with self._lock:
            if self._registry is None:
                return False, {"status": "the run has ended"}
            snapshot = take_snapshot(self._context.page, None)
        ages = {name: slot.heartbeat_age_s for name, slot in snapshot.slots.items()}
        quarantined = sorted(
            name for name, s in snapshot.slots.items() if s.state is WorkerState.QUARANTINED
        )
        well = not quarantined and snapshot.state is not RunState.STOPPED
        return well, {
            "status": "ok" if well else f"quarantined: {', '.join(quarantined) or 'none'}",
            "run_id": self._context.run_id,
            "run_state": snapshot.state.name.lower(),
            "workers": {
                name: {
                    "state": slot.state.name.lower(),
                    "heartbeat_age_s": round(ages[name], 3) if math.isfinite(ages[name]) else None,
                }
                for name, slot in snapshot.slots.items()
            },
        }

    def tick(self, state: RunState) -> None:
        """Nothing: the work is done when somebody asks."""

    def close(self) -> None:
        """Stop listening and take prometheus.json away. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        with self._lock:
            self._registry = None
        with suppress(OSError):
            (self._context.run_dir / EXPORTER_FILE).unlink()


def _started_s(context: MonitorContext) -> float:
    """The run's start as run.json has it, so that a restarted exporter says the same; else now."""
    try:
        return int(read_run_file(context.run_dir)["started_unix_ns"]) / 1e9
    except (RunFileError, ArithmeticError, ValueError, KeyError, TypeError):
        return time.time()


def _capacity(config: Mapping[str, object]) -> int | None:
    bus = config.get("bus")
    found = bus.get("capacity_packets") if isinstance(bus, Mapping) else None
    return found if isinstance(found, int) and found > 0 else None


def _unavailable() -> str | None:
    if find_spec("prometheus_client") is None:
        return "prometheus_client is not installed; pip install 'asys-i[prometheus]'"
    return None


def _build(options: MonitorOptions) -> PrometheusMonitor:
    assert isinstance(options, PrometheusOptions)
    return PrometheusMonitor(options)


plugin = MonitorPlugin(
    name="prometheus",
    summary="Prometheus metrics and /healthz of a run over HTTP, on the loopback by default",
    options=PrometheusOptions,
    build=_build,
    unavailable=_unavailable,
)
