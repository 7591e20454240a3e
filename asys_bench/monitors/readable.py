"""Numbers and names for people: short, aligned, honest about what is unknown ("-")."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from asys_bench.contracts.stats import RunState, WorkerState
from asys_bench.monitors.figures import RunFigures
from asys_bench.monitors.rates import merge, per_second, subtract

UNKNOWN = "-"


def plural(unit: str) -> str:
    """Several of a host's step unit: "env steps", "batches"."""
    return f"{unit}es" if unit.endswith(("s", "x", "z", "ch", "sh")) else f"{unit}s"


def path_text(path: os.PathLike[str]) -> str:
    """Relative to the working directory where it lies below that."""
    try:
        relative = os.path.relpath(path)
    except OSError:  # the working directory is gone
        return os.fspath(path)
    return os.fspath(path) if relative.startswith("..") else relative


def count_text(n: float) -> str:
    """12,345 below ten million, then 12.3M and 4.56G."""
    if not math.isfinite(n):
        return UNKNOWN
    for limit, factor, suffix in ((1e7, 1.0, ""), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if abs(n) < limit:
            return f"{n:,.0f}" if not suffix else f"{significant(n / factor)}{suffix}"
    return f"{n:.3g}"


def rate_text(per_second: float) -> str:
    """Per-second figure: 0.25, 8.5, 1,234, 12.3k, 4.56M."""
    if not math.isfinite(per_second):
        return UNKNOWN
    if per_second >= 1e6:
        return f"{significant(per_second / 1e6)}M"
    if per_second >= 1e4:
        return f"{significant(per_second / 1e3)}k"
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == 0 else f"{per_second:.2g}"


def bytes_text(n: float) -> str:
    """Decimal units, as disks and networks are sold: 512 B, 3.20 MB."""
    if not math.isfinite(n):
        return UNKNOWN
    if abs(n) < 1000:
        return f"{n:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        n /= 1000
        if abs(n) < 999.5 or unit == "TB":
            return f"{significant(n)} {unit}"
    raise AssertionError("unreachable")


def significant(x: float) -> str:
    """Three significant digits, no exponent: 1.23, 12.3, 123, 1,234."""
    if not math.isfinite(x):
        return UNKNOWN
    magnitude = abs(x)
    if magnitude >= 99.95:
        return f"{x:,.0f}"
    if magnitude >= 9.995:
        return f"{x:.1f}"
    if magnitude >= 0.0995 or magnitude == 0:
        return f"{x:.2f}"
    return f"{x:.3f}" if magnitude >= 0.00095 else f"{x:.1e}"


def ratio_text(x: float, digits: int = 3) -> str:
    """A ratio with fixed digits, so that columns line up."""
    return f"{x:.{digits}f}" if math.isfinite(x) else UNKNOWN


def fvu_text(x: float) -> str:
    """Three digits, and never 0 for what is not 0."""
    return f"{x:.0e}" if 0 < x < 0.0005 else ratio_text(x)


def percent_text(ratio: float) -> str:
    """100 %, 12.5 %, 0.4 %; never rounded up to 100 %."""
    if not math.isfinite(ratio):
        return UNKNOWN
    percent = ratio * 100
    if percent == 0 or percent >= 100:
        return f"{percent:.0f} %"
    return f"{min(percent, 99.9):.1f} %"


def duration_text(seconds: float) -> str:
    """0:07, 12:34, 3:04:05."""
    if not math.isfinite(seconds):
        return UNKNOWN
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def age_text(seconds: float) -> str:
    """0.2 s, 12 s, 3:04; "never" for a slot that never beat; UNKNOWN for NaN."""
    if math.isinf(seconds):
        return "never"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else duration_text(seconds)


def reasons_text(counts: Mapping[str, int]) -> str:
    """3 slow, 12 unreachable; empty where nothing was counted."""
    return "  ".join(f"{count_text(n)} {reason}" for reason, n in sorted(counts.items()) if n)


def tail_text(name: str, width: int) -> str:
    """`name` in at most `width` columns; its end is kept, because module paths differ at the end."""
    return name if len(name) <= width else "…" + name[len(name) - max(1, width - 1) :]


def plain_line(
    now: RunFigures, before: RunFigures, seconds: float, elapsed_s: float, step_unit: str
) -> str:
    """The run in one line without colour or escape codes, for logs and pipes; rates and latencies are
    over the `seconds` since `before`."""
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
    for one in now.remotes:
        away = "" if one.connected else " away"
        lost = reasons_text(one.dropped) or "0"
        parts.append(f"{one.worker}{away} acked {count_text(one.acked)} dropped {lost}")
    if now.receiver is not None:
        accepted = count_text(now.receiver.accepted)
        parts.append(f"{now.receiver.connections} connected, accepted {accepted}")
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
