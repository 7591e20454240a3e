"""The run in one line, for logs and pipes: no colour, no escape codes, greppable."""

from __future__ import annotations

import math

from asys_bench.contracts.stats import RunState, WorkerState
from asys_bench.monitors.figures import RunFigures
from asys_bench.monitors.rates import merge, per_second, subtract
from asys_bench.monitors.readable import (
    count_text,
    duration_text,
    percent_text,
    plural,
    rate_text,
    ratio_text,
    significant,
)


def plain_line(
    now: RunFigures, before: RunFigures, seconds: float, elapsed_s: float, step_unit: str
) -> str:
    """One line; rates and latencies are over the `seconds` since `before`."""
    rate = per_second(now.host.steps, before.host.steps, seconds)
    parts = [f"{count_text(now.host.steps)} {plural(step_unit)}"]
    parts[0] += f" ({rate_text(rate)}/s)" if math.isfinite(rate) else ""
    if now.ranks:
        there = sum(rank.state is WorkerState.READY for rank in now.ranks)
        parts.append(f"other ranks {there}/{len(now.ranks)}")
    parts += [f"{name} {significant(value)}" for name, value in reported_first(now)[:2]]
    if now.account:
        dropped = count_text(now.account.dropped_total)
        parts.append(f"packets {count_text(now.account.produced)} dropped {dropped}")
    earlier = merge(h.latency_ns for h in before.hooks)
    latency = subtract(merge(h.latency_ns for h in now.hooks), earlier)
    if latency.count:
        parts.append(f"hook p99 {significant(latency.quantile(0.99) / 1000)} us")
    rates = [h.sampling_rate for h in now.hooks if math.isfinite(h.sampling_rate)]
    if rates and min(rates) < 1:
        parts.append(f"sampling from {percent_text(min(rates))}")
    fvus = [sae.fvu for sae in now.saes if math.isfinite(sae.fvu)]
    if fvus:
        low, high = ratio_text(min(fvus)), ratio_text(max(fvus))
        parts.append(f"FVU {low}" if low == high else f"FVU {low}..{high}")
    parts.append(_workers(now))
    state = "" if now.state is RunState.RUNNING else f" {now.state.name.lower()}"
    return f"[{duration_text(elapsed_s)}{state}] " + " | ".join(parts)


def reported_first(figures: RunFigures) -> list[tuple[str, float]]:
    """The host's own figures, those about reward and loss first."""
    known = [(k, v) for k, v in (figures.host.reported or {}).items() if math.isfinite(v)]
    return sorted(known, key=lambda item: ("reward" not in item[0], "loss" not in item[0]))


def _workers(figures: RunFigures) -> str:
    workers = [w for w in figures.workers if not w.is_service]
    good = (WorkerState.READY, WorkerState.DONE)
    text = f"workers {sum(w.state in good for w in workers)}/{len(workers)}"
    restarts = sum(w.restarts for w in workers)
    return text + (f" ({restarts} restarts)" if restarts else "")
