"""scraped_run: what the Prometheus exporter costs, and whether the host notices it.

A whole run of the production pipeline; this process scrapes it at a fixed interval, as Prometheus
would. Compare `step_slowdown` with the reference ``set: {monitors: {}}``, in which nobody scrapes and
the same time passes.
"""

from __future__ import annotations

import json
import time
import urllib.request

from pydantic import Field

from asys_bench.contracts.run_files import EXPORTER_FILE
from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    RoundContext,
    ScenarioError,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.faults.host_process import read_steps
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.scenarios.beside_run import running
from asys_bench.system.process_usage import process_usage

SCRAPE_TIMEOUT_S = 10.0


class ScrapedOptions(ScenarioOptions):
    """`params` of scraped_run."""

    interval_s: float = Field(default=1.0, gt=0, le=60, description="between scrapes")
    settle_s: float = Field(
        default=2.0, ge=0, le=60, description="after the first packets, before anything counts"
    )
    monitor: str = Field(default="prometheus", description="name of the run's exporter")


def run(context: RoundContext) -> None:
    """Start the run, scrape it `samples` times, end it; its steps meanwhile count."""
    options = context.options
    assert isinstance(options, ScrapedOptions)
    scraped = options.monitor in context.config.enabled_monitors
    with running(context) as beside:
        time.sleep(options.settle_s)
        begun = time.monotonic_ns()
        with context.timed():
            if scraped:
                _scrape(context, options, beside)
            else:
                time.sleep(context.samples * options.interval_s)
        ended = time.monotonic_ns()
    step_begun, step_ended = read_steps(context.scratch)
    steps = (step_ended - step_begun)[(step_begun >= begun) & (step_ended <= ended)]
    context.recorder("step_ms").extend(steps)
    context.recorder("step_slowdown").extend(steps)


def _scrape(context: RoundContext, options: ScrapedOptions, beside: ObservedRun) -> None:
    targets = json.loads((beside.run_dir / EXPORTER_FILE).read_text())
    url = f"http://{targets[0]['targets'][0]}/metrics"
    pid = beside.pid(f"monitor-{options.monitor}")
    recorder = context.recorder("scrape_ms")
    before, begun = process_usage(pid), time.monotonic()
    for index in range(context.samples):
        time.sleep(max(0.0, begun + (index + 1) * options.interval_s - time.monotonic()))
        started = time.perf_counter_ns()
        with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT_S) as reply:
            text = reply.read()
        recorder.record(time.perf_counter_ns() - started)
        if b"asys_host_steps_total" not in text:
            raise ScenarioError(f"{url} has no asys_host_steps_total")
    after, passed_s = process_usage(pid), time.monotonic() - begun
    if before is None or after is None:
        raise ScenarioError(f"the exporter (pid {pid}) was restarted; see its log")
    context.value("exporter_cpu_ratio", (after[0] - before[0]) / passed_s)


plugin = ScenarioPlugin(
    name="scraped_run",
    summary="cost of the Prometheus exporter for itself and for the host",
    options=ScrapedOptions,
    takes="pipeline",
    metrics={
        "scrape_ms": MetricSpec("lower", MetricKind.SAMPLES, "request to last byte, on loopback"),
        "exporter_cpu_ratio": MetricSpec(
            "lower", MetricKind.ROUND, "CPU time of the exporter's process, of one core"
        ),
        "step_ms": MetricSpec("lower", MetricKind.SAMPLES, "one host step"),
        "step_slowdown": MetricSpec(
            "lower", MetricKind.SAMPLES, "host step against the reference", relative_only=True
        ),
    },
    run=run,
)
