"""TensorBoard event files, written by TensorBoard's own writer. The dependency is optional.

Tags are grouped so that each card compares what is comparable: `sae_fvu/<hook>`,
`hook_latency_p99_ms/<hook>`, `bus_ready/<group>`. The step axis is the host's step, the relative
axis is time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

from asys_bench.contracts.stats import HistogramSnapshot, WorkerState, bucket_upper
from asys_bench.monitors.figures import RunFigures
from asys_bench.monitors.rates import EMPTY_HISTOGRAM, per_second, quantiles, subtract

MISSING = "TensorBoard files are off: pip install 'asys-i[tensorboard]' to have them"
HISTOGRAM_EVERY_S = 10.0
BUCKETS_PER_BAR = 8
"""Half a power of two: a histogram of tens of bars instead of hundreds."""


class Writer(Protocol):
    """The part of `torch.utils.tensorboard.SummaryWriter` that is used here."""

    def add_scalar(self, tag: str, value: float, step: int, wall_s: float) -> None: ...
    def add_histogram_raw(self, tag: str, step: int, wall_s: float, **raw: Any) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class TorchWriter:
    """The real one.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), flush_secs=5, purge_step=purge_step)

    def add_scalar(self, tag: str, value: float, step: int, wall_s: float) -> None:
        self._writer.add_scalar(tag, value, step, wall_s)

    def add_histogram_raw(self, tag: str, step: int, wall_s: float, **raw: Any) -> None:
        self._writer.add_histogram_raw(tag, global_step=step, walltime=wall_s, **raw)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class TensorBoardFiles:
    """Writes figures as scalars at every call, and latency histograms every ten seconds."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._histogram_due_s = 0.0
        self._histograms: dict[str, HistogramSnapshot] = {}

    def write(
        self, now: RunFigures, before: RunFigures | None, time_s: float, wall_s: float
    ) -> None:
        """Add a point to every series; rates are over the time since `before`."""
        step = now.host.steps
        for tag, value in scalars_of(now, before).items():
            self._writer.add_scalar(tag, value, step, wall_s)
        if time_s >= self._histogram_due_s:
            self._histogram_due_s = time_s + HISTOGRAM_EVERY_S
            for hook in now.hooks:
                earlier = self._histograms.get(hook.hook, EMPTY_HISTOGRAM)
                self._histograms[hook.hook] = hook.latency_ns
                recent = subtract(hook.latency_ns, earlier)
                if recent.count:
                    raw = raw_histogram(recent, 1e-3)
                    self._writer.add_histogram_raw(
                        f"hook_latency_us/{hook.hook}", step, wall_s, **raw
                    )
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def scalars_of(now: RunFigures, before: RunFigures | None) -> dict[str, float]:
    """Tag -> value; what is not known (yet) is left out."""
    seconds = (now.time_ns - before.time_ns) / 1e9 if before else math.nan
    tags: dict[str, float] = {f"host/{k}": v for k, v in (now.host.reported or {}).items()}
    if before:
        tags["host/steps_per_s"] = per_second(now.host.steps, before.host.steps, seconds)
    for hook in now.hooks:
        earlier = before.hook(hook.hook) if before else None
        captured = earlier.captured if earlier else 0
        tags[f"hook_captured_per_s/{hook.hook}"] = per_second(hook.captured, captured, seconds)
        tags[f"hook_sampling_rate/{hook.hook}"] = hook.sampling_rate
        tags[f"hook_dropped/{hook.hook}"] = hook.dropped
        past = earlier.latency_ns if earlier else EMPTY_HISTOGRAM
        recent = quantiles(subtract(hook.latency_ns, past), 1e-6)
        tags[f"hook_latency_p50_ms/{hook.hook}"] = recent.p50
        tags[f"hook_latency_p99_ms/{hook.hook}"] = recent.p99
    for sae in now.saes:
        tags[f"sae_loss/{sae.hook}"] = sae.loss
        tags[f"sae_fvu/{sae.hook}"] = sae.fvu
        tags[f"sae_fvu_all/{sae.hook}"] = sae.fvu_all
        tags[f"sae_l0/{sae.hook}"] = sae.l0
        tags[f"sae_dead_ratio/{sae.hook}"] = sae.dead_ratio
        tags[f"sae_dense_ratio/{sae.hook}"] = sae.dense_ratio
        tags[f"sae_rows_trained/{sae.hook}"] = sae.rows_trained
    for archive in now.archives:
        tags[f"archive_rows/{archive.hook}"] = archive.rows
    if now.account:
        tags["bus/produced"] = now.account.produced
        tags |= {f"bus_dropped/{reason}": n for reason, n in now.account.dropped.items()}
        tags |= {f"bus_ready/{group.group}": group.ready for group in now.account.groups}
    for worker in now.workers:
        if worker.state is not WorkerState.EMPTY:
            tags[f"worker_restarts/{worker.name}"] = worker.restarts
    return {tag: float(value) for tag, value in tags.items() if math.isfinite(value)}


def raw_histogram(snapshot: HistogramSnapshot, factor: float) -> dict[str, Any]:
    """Arguments of `add_histogram_raw`: buckets joined into bars, edges scaled by `factor`."""
    limits: list[float] = []
    counts: list[int] = []
    squares = 0.0
    for first in range(0, len(snapshot.buckets), BUCKETS_PER_BAR):
        bar = snapshot.buckets[first : first + BUCKETS_PER_BAR]
        n = sum(bar)
        if n or counts:
            limits.append(bucket_upper(first + len(bar) - 1) * factor)
            counts.append(n)
        squares += sum(
            k * (bucket_upper(first + index) * factor) ** 2 for index, k in enumerate(bar) if k
        )
    while counts and counts[-1] == 0:
        counts.pop()
        limits.pop()
    return {
        "min": snapshot.quantile(0.0) * factor,
        "max": snapshot.maximum * factor,
        "num": snapshot.count,
        "sum": snapshot.total * factor,
        "sum_squares": squares,
        "bucket_limits": limits,
        "bucket_counts": counts,
    }
