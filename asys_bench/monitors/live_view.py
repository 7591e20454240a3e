"""The live status as a rich renderable: readable at 80 columns, at ease at 120. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.stats import RunState, WorkerState
from asys_bench.monitors.figures import RunFigures, WorkerFigures
from asys_bench.monitors.rates import per_second, quantiles, subtract
from asys_bench.monitors.readable import (
    age_text,
    bytes_text,
    count_text,
    duration_text,
    fvu_text,
    percent_text,
    plural,
    rate_text,
    ratio_text,
    reasons_text,
    reported_first,
    significant,
    tail_text,
)

SIDE_BY_SIDE = 100
WIDE = 110
WIDEST = 120
LATE_HEARTBEAT_S = 5.0
STATE_STYLES: Mapping[WorkerState, str] = {
    WorkerState.EMPTY: "dim",
    WorkerState.STARTING: "yellow",
    WorkerState.READY: "green",
    WorkerState.DONE: "dim green",
    WorkerState.FAILED: "bold red",
    WorkerState.QUARANTINED: "bold white on red",
}


@dataclass(frozen=True, slots=True)
class LiveModel:
    """All that one frame shows; rates are over the `seconds` since `before`."""

    run_id: str
    step_unit: str
    elapsed_s: float
    now: RunFigures
    before: RunFigures
    seconds: float
    capacity_packets: int | None = None
    """What a group can hold, when the configuration says it; shows how full each is."""


def live_view(model: LiveModel, width: int) -> RenderableType:
    """One frame for a terminal of `width` columns."""
    width = min(width, WIDEST)
    left = width - (88 if width >= WIDE else 61)
    names = name_columns(
        [*(h.hook for h in model.now.hooks), *(s.hook for s in model.now.saes)], left
    )
    parts: list[RenderableType] = [_title(model, width), _host(model, width)]
    if model.now.ranks:
        parts.append(_ranks(model))
    if model.now.hooks:
        parts += [Text(), _hooks(model, width, names)]
    if model.now.saes:
        parts += [Text(), _saes(model, width, names)]
    past = [*_remotes(model), *_receiver(model)]
    parts += [Text(), *past] if past else []
    account, workers = model.now.account, _workers(model)
    if account is None:
        return Group(*parts, Text(), workers)
    before = model.before.account or account
    parts += [Text(), _bus(model, account, before)]
    groups = _groups(model, account, before)
    if width >= SIDE_BY_SIDE:
        grid = Table.grid(padding=(0, 4, 0, 0), pad_edge=False)
        grid.add_row(groups, workers)
        return Group(*parts, Text(), grid)
    return Group(*parts, Text(), groups, Text(), workers)


# Widths of number columns: fixed, so that nothing jumps while numbers grow.
COUNT, RATE, FLOW, SHORT = 11, 7, 11, 8


def table(name: str, name_columns: int, *columns: tuple[str, int]) -> Table:
    """A table whose first column is a name and whose others are numbers of fixed width."""
    made = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        border_style="dim",
    )
    made.add_column(name, no_wrap=True, width=name_columns)
    for title, width in columns:
        made.add_column(title, justify="right", no_wrap=True, width=width)
    return made


def name_columns(names: list[str], left: int) -> int:
    """Columns for names: as wide as the longest if `left` allows."""
    return max(10, min(max(map(len, names), default=8), left))


def _title(model: LiveModel, width: int) -> RenderableType:
    state = model.now.state
    style = {RunState.RUNNING: "green", RunState.DRAINING: "yellow"}.get(state, "dim")
    left = Text.assemble(("A-Sys-I ", "bold cyan"), tail_text(model.run_id, width - 32))
    right = Text.assemble((state.name.lower(), style), f"  {duration_text(model.elapsed_s)}")
    gap = max(1, width - left.cell_len - right.cell_len)
    return Group(Text.assemble(left, " " * gap, right), Text("─" * width, "dim"))


def _host(model: LiveModel, width: int) -> Text:
    host = model.now.host
    rate = per_second(host.steps, model.before.host.steps, model.seconds)
    text = Text.assemble(
        ("host   ", "bold"),
        (count_text(host.steps), "bold"),
        f" {plural(model.step_unit)}  ",
        (f"{rate_text(rate)}/s", "cyan"),
    )
    told = [(name, significant(value)) for name, value in reported_first(model.now)]
    if host.weights_version:
        told.append(("updates", count_text(host.weights_version)))
    for name, value in told:
        if text.cell_len + len(name) + len(value) + 3 <= width:
            text.append(f"  {name} ", "dim").append(value, "bold")
    return text


def _ranks(model: LiveModel) -> Text:
    """The other ranks of the node, which are hosts as well."""
    earlier = {rank.name: rank.steps for rank in model.before.ranks}
    text = Text.assemble(("ranks  ", "bold"))
    for index, rank in enumerate(model.now.ranks):
        rate = per_second(rank.steps, earlier.get(rank.name, rank.steps), model.seconds)
        text.append("   " if index else "").append(f"{rank.name} ")
        text.append(rank.state.name.lower(), STATE_STYLES[rank.state])
        text.append(f" {count_text(rank.steps)} {plural(model.step_unit)}", "bold")
        text.append(f" {rate_text(rate)}/s", "cyan")
    return text


def _hooks(model: LiveModel, width: int, names: int) -> Table:
    wide = width >= WIDE
    extra = (("bytes/s", FLOW), ("sampled out", COUNT)) if wide else ()
    made = table(
        "hook",
        names,
        ("captured", COUNT),
        ("/s", RATE),
        *extra,
        ("sampling", SHORT),
        ("dropped", SHORT),
        ("p50 us", RATE),
        ("p99 us", RATE),
    )
    for hook in model.now.hooks:
        before = model.before.hook(hook.hook) or hook
        q = quantiles(subtract(hook.latency_ns, before.latency_ns), 1e-3)
        if not q.count:  # nothing in this window: what the whole run says
            q = quantiles(hook.latency_ns, 1e-3)
        cells: list[str | Text] = [
            tail_text(hook.hook, names),
            count_text(hook.captured),
            rate_text(per_second(hook.captured, before.captured, model.seconds)),
        ]
        if wide:
            flow = per_second(hook.nbytes, before.nbytes, model.seconds)
            cells += [bytes_text(flow), count_text(hook.sampled_out)]
        cells += [
            Text(percent_text(hook.sampling_rate), "yellow" if hook.sampling_rate < 1 else ""),
            _count(hook.dropped, "yellow" if hook.dropped > before.dropped else ""),
            significant(q.p50),
            significant(q.p99),
        ]
        made.add_row(*cells)
    return made


def _saes(model: LiveModel, width: int, names: int) -> Table:
    wide = width >= WIDE
    extra, last = ((("rows/s", FLOW),), (("dense", RATE),)) if wide else ((), ())
    made = table(
        "SAE",
        names,
        ("rows", COUNT),
        ("steps", SHORT + 1),
        *extra,
        ("loss", SHORT),
        ("FVU", RATE),
        ("L0", RATE),
        ("dead", RATE),
        *last,
    )
    order = {hook.hook: index for index, hook in enumerate(model.now.hooks)}
    for sae in sorted(model.now.saes, key=lambda s: (order.get(s.hook, len(order)), s.worker)):
        cells: list[str | Text] = [
            tail_text(sae.hook, names),
            count_text(sae.rows),
            count_text(sae.steps),
        ]
        if wide:
            before = model.before.sae(sae.worker, sae.hook) or sae
            cells.append(rate_text(per_second(sae.rows, before.rows, model.seconds)))
        cells += [
            significant(sae.loss),
            Text(fvu_text(sae.fvu), "bold"),
            ratio_text(sae.l0, 1),
            Text(percent_text(sae.dead_ratio), "yellow" if sae.dead_ratio > 0.5 else ""),
        ]
        if wide:
            cells.append(percent_text(sae.dense_ratio))
        made.add_row(*cells)
    return made


def _bus(model: LiveModel, account: BusAccount, before: BusAccount) -> Text:
    rate = per_second(account.produced, before.produced, model.seconds)
    flow = per_second(account.produced_bytes, before.produced_bytes, model.seconds)
    line = Text.assemble(("bus    ", "bold"), (count_text(account.produced), "bold"), " packets  ")
    line.append(f"{rate_text(rate)}/s  ", "cyan").append(f"{bytes_text(flow)}/s", "cyan")
    told = reasons_text({str(reason): n for reason, n in account.dropped.items()})
    line.append("  dropped ", "dim").append(told or "0", "yellow" if told else "")
    return line


def _remotes(model: LiveModel) -> list[RenderableType]:
    """What leaves this machine, a line a forwarder."""
    earlier = {one.worker: one for one in model.before.remotes}
    lines: list[RenderableType] = []
    for one in model.now.remotes:
        rate = per_second(one.acked, earlier.get(one.worker, one).acked, model.seconds)
        line = Text.assemble((f"{one.worker} ", "bold"))
        line.append("connected" if one.connected else "away", "green" if one.connected else "red")
        line.append(f"  {count_text(one.acked)}", "bold").append(" acked  ")
        line.append(f"{rate_text(rate)}/s", "cyan")
        line.append("  in flight ", "dim").append(count_text(one.in_flight))
        line.append("  credit ", "dim").append(bytes_text(one.credit_bytes))
        told = reasons_text(one.dropped)
        line.append("  dropped ", "dim").append(told or "0", "yellow" if told else "")
        lines.append(line)
    return lines


def _receiver(model: LiveModel) -> list[RenderableType]:
    """What comes from other machines."""
    now, before = model.now.receiver, model.before.receiver
    if now is None:
        return []
    before = before or now
    rate = per_second(now.accepted, before.accepted, model.seconds)
    flow = per_second(now.accepted_bytes, before.accepted_bytes, model.seconds)
    line = Text.assemble(("receiver ", "bold"), f"{now.connections} connected  ")
    line.append(count_text(now.accepted), "bold").append(" accepted  ")
    line.append(f"{rate_text(rate)}/s  {bytes_text(flow)}/s", "cyan")
    line.append("  lag ", "dim").append(age_text(now.lag_s))
    refused = reasons_text(now.refused)
    line.append("  refused ", "dim").append(refused or "0", "yellow" if refused else "")
    return [line]


def _groups(model: LiveModel, account: BusAccount, before: BusAccount) -> Table:
    full = model.capacity_packets
    names = name_columns([g.group for g in account.groups], 16)
    fill_column = (("fill", RATE),) if full else ()
    made = table(
        "group",
        names,
        ("delivered", COUNT),
        ("/s", RATE),
        ("ready", RATE),
        *fill_column,
        ("lost", RATE),
    )
    earlier = {g.group: g.delivered for g in before.groups}
    for g in account.groups:
        speed = per_second(g.delivered, earlier.get(g.group, g.delivered), model.seconds)
        fill = (percent_text(g.ready / full),) if full else ()
        lost = _count(g.lost_in_flight + g.dead_lettered, "yellow")
        name = tail_text(g.group, names)
        made.add_row(
            name, count_text(g.delivered), rate_text(speed), count_text(g.ready), *fill, lost
        )
    return made


def _workers(model: LiveModel) -> Table:
    workers = [w for w in model.now.workers if w.state is not WorkerState.EMPTY]
    names = name_columns([w.name for w in workers], 16)
    made = table("worker", names, ("state", COUNT), ("restarts", SHORT), ("heartbeat", 9))
    for worker in workers:
        made.add_row(
            tail_text(worker.name, names),
            Text(worker.state.name.lower(), STATE_STYLES[worker.state]),
            _count(worker.restarts, "yellow"),
            _heartbeat(worker),
        )
    return made


def _heartbeat(worker: WorkerFigures) -> Text:
    if worker.state in (WorkerState.DONE, WorkerState.QUARANTINED):
        return Text("-", "dim")
    late = math.isfinite(worker.heartbeat_age_s) and worker.heartbeat_age_s > LATE_HEARTBEAT_S
    return Text(age_text(worker.heartbeat_age_s), "bold yellow" if late else "")


def _count(n: int, style: str) -> Text:
    return Text(count_text(n), style if n else "")
