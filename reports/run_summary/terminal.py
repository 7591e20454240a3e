"""`RunSummary` as tables for a terminal. Readable at 80 columns; no I/O."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from pathlib import PurePosixPath

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from asys_bench.contracts.run_files import DELETED_FOR
from asys_bench.monitors.readable import (
    UNKNOWN,
    bytes_text,
    count_text,
    duration_text,
    fvu_text,
    percent_text,
    plural,
    rate_text,
    ratio_text,
    significant,
    tail_text,
)
from asys_bench.reports.run_summary.summary import BusSummary, FileEntry, HostSummary, RunSummary

NAN = float("nan")
BESIDE_NAME = 56
"""Columns of the numbers beside a hook's name in the widest table."""
MEANINGS = {
    "dropped": "refused by the bus, which had no room (or another reason above); the host went on",
    "lost": "in the hands of a worker that died; a trainer's packets are not delivered again",
    "dead letter": "delivered 5 times to workers that died with it; given up on",
    "ready": "still unread when the run ended",
    "missed": "not the group's: other hooks, offered before it joined, or left when it ended",
}
"""What a packet of the account went through; docs/guarantees.md has the same words."""


def render_terminal(summary: RunSummary, width: int = 100) -> RenderableType:
    """The whole summary for a console of `width` columns (hook names are cut to fit)."""
    names = max(12, width - BESIDE_NAME)
    parts: list[RenderableType] = [_title(summary), _host(summary.host)]
    sections = (
        _packets(summary.bus),
        _hooks(summary, names),
        _saes(summary, names),
        _archive(summary, names),
    )
    beside = (_ranks(summary), _workers(summary), _attempts(summary), _files(summary))
    for section in (*sections, *beside):
        if section is not None:
            parts += [Text(), section]
    if summary.warnings:
        parts += [Text(), *(Text(f"! {w}", "bold yellow") for w in summary.warnings)]
    if summary.report:
        path = Text(f"  {summary.report}", "bold cyan", no_wrap=True, overflow="ignore")
        parts += [Text(), Text("what the features fire on: open in a browser", "bold"), path]
    if summary.next_steps:
        parts += [Text(), Text("what to type next", "bold")]
        for step in summary.next_steps:
            # Not wrapped by us: a command must survive being copied from the screen.
            command = Text(f"  {step.command}", "cyan", no_wrap=True, overflow="ignore")
            parts += [Text(f"# {step.what}", "dim"), command]
    return Group(*parts)


def render_text(summary: RunSummary, width: int = 100) -> str:
    """Plain text without escape codes."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False)
    console.print(render_terminal(summary, width), crop=False, soft_wrap=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _title(summary: RunSummary) -> RenderableType:
    good = summary.outcome == "finished" and summary.balanced
    style = "bold green" if good else "bold yellow"
    title = Text.assemble(("A-Sys-I  ", "bold cyan"), summary.run_id, "  ")
    if summary.attempts:
        title.append(f"attempt {summary.attempts[-1].attempt}  ")
    title.append(summary.outcome, style)
    if summary.elapsed_s is not None:
        title.append(f" after {duration_text(summary.elapsed_s)}")
    return Group(Rule(style="dim"), title, Rule(style="dim"))


def _host(host: HostSummary) -> Text:
    text = Text.assemble(
        ("host     ", "bold"), (count_text(host.steps), "bold"), f" {plural(host.step_unit)}"
    )
    if host.steps_per_s is not None:
        text.append(f" in {duration_text(host.seconds)}").append(
            f"  {rate_text(host.steps_per_s)}/s", "cyan"
        )
    if host.weights_version:
        text.append("  weight updates ", "dim").append(count_text(host.weights_version))
    figures = sorted(host.figures.items(), key=lambda item: "reward" not in item[0])
    for name, value in figures[:6]:
        text.append(f"  {name} ", "dim").append(significant(_number(value)), "bold")
    return text


def _packets(bus: BusSummary | None) -> RenderableType | None:
    if bus is None:
        return None
    line = Text.assemble(
        ("packets  ", "bold"),
        (count_text(bus.produced), "bold"),
        f" produced ({bytes_text(bus.produced_bytes)})  ",
    )
    line.append(f"{bus.dropped_total:,} dropped", "yellow" if bus.dropped_total else "")
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in bus.dropped.items() if n)
    line.append(f" ({reasons})" if reasons else "")
    made = _table("group", "delivered", *MEANINGS, "account")
    seen: set[str] = set()
    for g in bus.groups:
        verdict = Text("OK", "bold green")
        if g.imbalance:
            verdict = Text(f"off by {g.imbalance:+,}", "bold red")
        others = (bus.dropped_total, g.lost_in_flight, g.dead_lettered, g.ready, g.missed)
        seen |= {name for name, n in zip(MEANINGS, others, strict=True) if n}
        made.add_row(g.group, *(f"{n:,}" for n in (g.delivered, *others)), verdict)
    identity = "account: produced = delivered + " + " + ".join(MEANINGS)
    explained = [f"{name}: {what}" for name, what in MEANINGS.items() if name in seen]
    notes = (Text(note, "dim") for note in (identity, *explained))
    return Group(line, made, *notes) if bus.groups else line


def _hooks(summary: RunSummary, names: int) -> Table | None:
    if not summary.hooks:
        return None
    made = _table("hook", "captured", "sampled out", "dropped", "p50 us", "p99 us", "max us")
    for hook in summary.hooks:
        latencies = (hook.latency_p50_us, hook.latency_p99_us, hook.latency_max_us)
        made.add_row(
            tail_text(hook.hook, names),
            count_text(hook.captured),
            count_text(hook.sampled_out),
            Text(count_text(hook.dropped), "yellow" if hook.dropped else ""),
            *(significant(_number(us)) for us in latencies),
        )
    return made


def _saes(summary: RunSummary, names: int) -> RenderableType | None:
    if not summary.saes:
        return None
    outliers = any(sae.outlier_rows for sae in summary.saes)
    both = ("FVU", "of all") if outliers else ("FVU",)
    made = _table("SAE", "rows", "steps", "loss", *both, "L0 (k)", "dead", "saved")
    names -= len("of all ") if outliers else 0
    for sae in summary.saes:
        l0 = ratio_text(_number(sae.l0), 1)
        if sae.configured_l0 is not None:
            l0 += f" ({sae.configured_l0:g})"
        made.add_row(
            tail_text(sae.hook, names),
            count_text(sae.rows),
            count_text(sae.steps),
            significant(_number(sae.loss)),
            Text(fvu_text(_number(sae.fvu)), "bold"),
            *((fvu_text(_number(sae.fvu_all)),) if outliers else ()),
            l0,
            percent_text(_number(sae.dead_ratio)),
            f"{sae.checkpoints}",
        )
    if not outliers:
        return made
    left_out = sum(sae.outlier_rows for sae in summary.saes)
    told = (
        f"{left_out:,} outliers (rows of far larger norm, such as attention sinks) were not trained "
        "on: the SAE leaves such rows as they are; FVU is without them, 'of all' with them"
    )
    return Group(made, Text(told, "dim"))


def _archive(summary: RunSummary, names: int) -> RenderableType | None:
    archives = [a for a in summary.archives if a.packets]
    if not archives:
        return None
    made = _table("archive", "rows", "packets", "data", "shards")
    for a in archives:
        made.add_row(
            tail_text(a.hook, names),
            count_text(a.rows),
            count_text(a.packets),
            bytes_text(a.data_bytes),
            count_text(a.shards),
        )
    words = [
        f"{count_text(gone.shards)} of these shards were deleted {DELETED_FOR.get(gone.reason, '')}, "
        f"the oldest first: {count_text(gone.rows)} rows of {count_text(gone.packets)} packets, "
        f"{bytes_text(gone.data_bytes)}"
        for gone in summary.archive_deleted
    ]
    return Group(made, *(Text(line, "dim") for line in words)) if words else made


def _ranks(summary: RunSummary) -> Text | None:
    if not summary.ranks:
        return None
    text = Text.assemble(("ranks    ", "bold"))
    for index, rank in enumerate(summary.ranks):
        bad = rank.state in ("failed", "ready")  # ready: it never said that it is done
        text.append("   " if index else "").append(f"{rank.name} ")
        text.append("gone" if bad else rank.state, "bold red" if bad else "green")
        text.append(f", {count_text(rank.steps)} {plural(summary.host.step_unit)}")
    return text


def _workers(summary: RunSummary) -> Text:
    text = Text.assemble(("workers  ", "bold"))
    for index, worker in enumerate(summary.workers):
        bad = worker.state in ("failed", "quarantined")
        text.append("   " if index else "").append(f"{worker.name} ")
        text.append(worker.state, "bold red" if bad else "green")
        if worker.device:
            text.append(f" on {worker.device}", "dim")
        if worker.restarts:
            ending = "s" if worker.restarts > 1 else ""
            text.append(f", {worker.restarts} restart{ending}", "yellow")
    return text


ATTEMPT_COLUMNS = ("attempt", "ended", "steps", "packets", "account")


def attempt_rows(summary: RunSummary) -> list[list[str]]:
    """Of a run that went on: a row per attempt, and one for all."""
    if not summary.attempts:
        return []
    rows = []
    for one in summary.attempts:
        steps = [UNKNOWN if n is None else f"{n:,}" for n in (one.first_step, one.last_step)]
        account = UNKNOWN if one.balanced is None else "OK" if one.balanced else "off"
        packets = UNKNOWN if one.packets is None else f"{one.packets:,}"
        rows.append([str(one.attempt), one.end or UNKNOWN, " to ".join(steps), packets, account])
    known = [one.packets for one in summary.attempts if one.packets is not None]
    total = f"{sum(known):,}" if len(known) == len(rows) else f"at least {sum(known):,}"
    return [*rows, ["all", "", "", total, ""]]


def _attempts(summary: RunSummary) -> RenderableType | None:
    rows = attempt_rows(summary)
    if not rows:
        return None
    made = _table(*ATTEMPT_COLUMNS)
    for row in rows:
        made.add_row(*row)
    return made


def _files(summary: RunSummary) -> RenderableType | None:
    if not summary.files:
        return None
    total = bytes_text(sum(f.nbytes for f in summary.files))
    head = Text.assemble(("files    ", "bold"), f"{summary.run_dir}  ", (f"{total} in all", "dim"))
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column()
    made.add_column(justify="right")
    made.add_column(style="dim")
    for name, count, nbytes in by_folder(summary.files):
        what = f"{count:,} files" if name.endswith("/") and count > 1 else ""
        made.add_row(f"  {name}", bytes_text(nbytes), what)
    return Group(head, made)


def by_folder(files: tuple[FileEntry, ...]) -> list[tuple[str, int, int]]:
    """(name, files, bytes) of each file at the top and of each folder at the top ("name/")."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in files:
        parts = PurePosixPath(entry.path).parts
        name = parts[0] + ("/" if len(parts) > 1 else "")
        totals[name][0] += 1
        totals[name][1] += entry.nbytes
    return [(name, count, nbytes) for name, (count, nbytes) in sorted(totals.items())]


def _table(name: str, *columns: str) -> Table:
    made = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        border_style="dim",
    )
    made.add_column(name, overflow="fold")
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def _number(value: float | None) -> float:
    return NAN if value is None or not math.isfinite(value) else value
