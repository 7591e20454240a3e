"""A cluster in a terminal: a row a receiver, a row a forwarder, one account. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from asys_bench.cluster.accounts import ReceiverAccount, Sender
from asys_bench.cluster.identities import ClusterCheck, SenderCheck, Verdict
from asys_bench.cluster.status import Cluster
from asys_bench.monitors.live_view import name_columns, table
from asys_bench.monitors.rates import per_second
from asys_bench.monitors.readable import (
    UNKNOWN,
    age_text,
    bytes_text,
    count_text,
    rate_text,
    reasons_text,
    tail_text,
)

STYLES = {
    Verdict.EQUAL: "green",
    Verdict.MOVING: "cyan",
    Verdict.SILENT: "dim",
    Verdict.IN_DOUBT: "yellow",
    Verdict.LOST: "yellow",
    Verdict.BROKEN: "bold white on red",
}
OLD_S = 15.0
"""A receiver that says nothing for so long is marked."""


@dataclass(frozen=True)
class ClusterFrame:
    """One reading of a cluster, and the one that rates are taken from."""

    cluster: Cluster
    check: ClusterCheck
    before: ClusterCheck
    seconds: float


def cluster_view(frame: ClusterFrame, width: int, now_s: float | None = None) -> RenderableType:
    """For a terminal of `width` columns. now_s: of the wall clock."""
    now_s = time.time() if now_s is None else now_s
    parts: list[RenderableType] = [_title(frame, width), Text()]
    parts += [_receivers(frame, width, now_s), Text(), _senders(frame, width), Text()]
    parts.append(account_text(frame.check))
    if not (frame.cluster.entries or frame.cluster.statuses):
        parts.append(
            Text("no receiver is or was in this book: is it what --book says of them?", "yellow")
        )
    for where, why in frame.cluster.unreadable.items():
        parts.append(Text(f"unreadable: {where}: {why}", "yellow"))
    for problem in problems_of(frame.check):
        parts.append(Text(problem, "bold red"))
    return Group(*parts)


def check_text(cluster: Cluster, check: ClusterCheck, width: int) -> RenderableType:
    """What `verify --cluster` prints: every forwarder, and the one account."""
    frame = ClusterFrame(cluster, check, check, math.nan)
    return Group(_senders(frame, width), Text(), account_text(check))


def problems_of(check: ClusterCheck) -> list[str]:
    """What does not hold, a line each."""
    return [
        *check.problems,
        *(f"{name_of(one)}: {problem}" for one in check.senders for problem in one.problems),
    ]


def name_of(one: SenderCheck) -> str:
    """A forwarder as people find it: its run and worker, and its attempt where there was one before."""
    run_id, attempt, worker = one.sender
    return f"{run_id}/{worker}" + (f"#{attempt}" if attempt else "")


def account_text(check: ClusterCheck) -> Text:
    """The one account of all hosts and receivers."""
    text = Text.assemble(("account  ", "bold"))
    text.append(f"{count_text(check.total('taken'))} taken = ")
    text.append(f"{count_text(check.total('acked'))} acked + ")
    dropped = reasons_text(check.dropped)
    text.append(f"{count_text(sum(check.dropped.values()))} dropped", "yellow" if dropped else "")
    text.append(f" ({dropped})" if dropped else "", "yellow")
    text.append(f" + {count_text(check.total('in_flight'))} in flight; ")
    text.append(f"{count_text(check.total('accepted'))} accepted: ")
    counts: dict[Verdict, int] = {}
    for one in check.senders:
        counts[one.verdict] = counts.get(one.verdict, 0) + 1
    for n, (verdict, many) in enumerate(counts.items()):
        text.append(", " if n else "").append(f"{many} {verdict}", STYLES[verdict])
    return text if counts else text.append("no forwarder yet", "dim")


def _title(frame: ClusterFrame, width: int) -> RenderableType:
    jobs = sorted({one.job for one in frame.check.senders if one.job})
    left = Text.assemble(
        ("A-Sys-I cluster ", "bold cyan"), tail_text(frame.cluster.uri, width - 40)
    )
    right = Text(", ".join(jobs)[:30], "dim")
    gap = max(1, width - left.cell_len - right.cell_len)
    return Group(Text.assemble(left, " " * gap, right), Text("─" * width, "dim"))


def _receivers(frame: ClusterFrame, width: int, now_s: float) -> RenderableType:
    earlier = {one.id: one.accepted for one in frame.before.receivers}
    told = {(one.name, one.generation) for one in frame.cluster.statuses}
    waiting = [one for one in frame.cluster.entries if (one.name, one.generation) not in told]
    rows: list[_Row] = []
    for one in frame.check.receivers:
        entry = frame.cluster.entry_of(one)
        at = entry.node if entry is not None else "ended" if one.final else "gone"
        age_s = max(0.0, now_s - one.unix_ns / 1e9)
        late = not one.final and age_s > OLD_S
        rate = per_second(one.accepted, earlier.get(one.id, one.accepted), frame.seconds)
        rows.append(
            {
                "receiver": one.name,
                "at": Text(tail_text(at, 24), "" if entry is not None else "dim"),
                "said": Text(
                    "last" if one.final else age_text(age_s), "bold yellow" if late else ""
                ),
                "hosts": str(one.connections),
                "accepted": count_text(one.accepted),
                "/s": rate_text(rate),
                "waits": count_text(sum(sender.window for sender in one.senders)),
                "credit": bytes_text(sum(sender.credit_bytes for sender in one.senders)),
                "lag": _lag(one),
                "refused": _counted(one.refused),
            }
        )
    rows += [
        {"receiver": one.name, "at": tail_text(one.node, 24), "said": Text("nothing", "dim")}
        for one in waiting
    ]
    return _table(rows, RECEIVER_COLUMNS, () if width >= 110 else ("at", "waits", "credit"))


def _senders(frame: ClusterFrame, width: int) -> RenderableType:
    earlier: dict[Sender, int] = {one.sender: one.acked for one in frame.before.senders}
    rows: list[_Row] = []
    for one in frame.check.senders:
        verdict = f"{one.verdict} {one.doubt}" if one.verdict in _COUNTED else str(one.verdict)
        rate = per_second(one.acked, earlier.get(one.sender, one.acked), frame.seconds)
        rows.append(
            {
                "forwarder": name_of(one),
                "node": tail_text(one.node, 12),
                "": Text("up" if one.connected else "away", "green" if one.connected else "dim"),
                "taken": count_text(one.taken),
                "acked": count_text(one.acked),
                "/s": rate_text(rate),
                "flying": count_text(one.in_flight),
                "accounts": Text(verdict, STYLES[one.verdict]),
                "dropped": _counted(one.dropped),
            }
        )
    return _table(rows, SENDER_COLUMNS, () if width >= 130 else ("node", "taken"))


_COUNTED = (Verdict.IN_DOUBT, Verdict.LOST)
_Row = dict[str, str | Text]
RECEIVER_COLUMNS = {
    "receiver": 20, "at": 24, "said": 7, "hosts": 5, "accepted": 11, "/s": 6, "waits": 7, "credit": 8,
    "lag": 6, "refused": 12,
}  # fmt: skip
SENDER_COLUMNS = {
    "forwarder": 26, "node": 12, "": 4, "taken": 11, "acked": 11, "/s": 6, "flying": 6, "accounts": 9,
    "dropped": 12,
}  # fmt: skip
"""Columns and their least width; the first is a name, which is cut at its front."""


def _table(rows: list[_Row], columns: dict[str, int], left_out: tuple[str, ...]) -> RenderableType:
    kept = {name: width for name, width in columns.items() if name not in left_out}
    cells = [{name: row.get(name, "") for name in kept} for row in rows]
    first, *numbers = kept
    for name in numbers:
        longest = max((len(row[name]) for row in cells), default=0)
        kept[name] = min(24, max(kept[name], longest))
    names = name_columns([str(row[first]) for row in cells], kept[first])
    made = table(first, names, *((name, kept[name]) for name in numbers))
    for row in cells:
        made.add_row(tail_text(str(row[first]), names), *(row[name] for name in numbers))
    return made


def _counted(counts: Mapping[str, int]) -> Text:
    return Text(reasons_text(counts) or "0", "yellow" if counts else "")


def _lag(one: ReceiverAccount) -> str:
    lags = [sender.lag_s for sender in one.senders if sender.connected]
    known = [lag for lag in lags if not math.isnan(lag)]
    return age_text(max(known)) if known else UNKNOWN
