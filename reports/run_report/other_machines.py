"""What the run sent to other machines, or what came from them: accounts, and how late packets were."""

from __future__ import annotations

from asys_bench.cluster.identities import SenderCheck, Verdict, check_cluster
from asys_bench.cluster.view import name_of, problems_of
from asys_bench.monitors.readable import UNKNOWN, age_text, bytes_text, count_text, reasons_text
from asys_bench.reports.page.markup import Child, Markup, name, table, tag
from asys_bench.reports.run_report.curves import Line, chart
from asys_bench.reports.run_report.record import RunRecord
from asys_bench.reports.run_report.series import rate

_SENT = (
    "forwarder",
    "receiver",
    "taken",
    "acked",
    "dropped",
    "in flight",
    "connections",
    "refused",
)
_CAME = ("host", "node", "accounts", "taken", "acked", "accepted", "dropped", "came again", "waits",
         "credit", "lag")  # fmt: skip


def other_machines(record: RunRecord) -> list[Markup]:
    """Tables and curves; none for a run that stayed on its machine."""
    parts: list[Markup] = []
    if record.forwarders:
        rows: list[list[Child]] = [
            [
                one.worker, name(one.receiver or UNKNOWN), count_text(one.taken),
                count_text(one.acked), reasons_text(one.dropped) or "0", count_text(one.in_flight),
                count_text(one.connections), reasons_text(one.refused) or "0",
            ]
            for one in record.forwarders
        ]  # fmt: skip
        parts.append(table(_SENT, rows, left=2))
    if record.receiver is not None:
        check = check_cluster([record.receiver])
        parts.append(tag("p", *_receiver(record), class_="how"))
        parts.append(table(_CAME, [_came(one) for one in check.senders], left=3))
        parts += [tag("p", problem, class_="how") for problem in problems_of(check)]
    figures = [figure for figure in _curves(record) if figure is not None]
    return [*parts, tag("div", *figures, class_="figures spaced")] if figures and parts else parts


def _receiver(record: RunRecord) -> list[Child]:
    one = record.receiver
    assert one is not None
    said = [
        f"{count_text(one.accepted)} packets accepted at {one.address}",
        f"job {one.job}" if one.job else "",
        f"{count_text(one.duplicates)} came again" if one.duplicates else "",
        f"{count_text(one.in_doubt)} in doubt after a kill" if one.in_doubt else "",
        f"{count_text(one.expired)} too old for the ledger" if one.expired else "",
        f"refused: {reasons_text(one.refused)}" if one.refused else "",
    ]
    return [", ".join(part for part in said if part), "."]


def _came(one: SenderCheck) -> list[Child]:
    bad = one.verdict is Verdict.BROKEN
    verdict = f"{one.verdict} {one.doubt}" if one.doubt and not bad else str(one.verdict)
    return [
        name(name_of(one)),
        name(one.node or UNKNOWN),
        tag("b", verdict) if bad else verdict,
        count_text(one.taken),
        count_text(one.acked),
        count_text(one.accepted),
        reasons_text(one.dropped) or "0",
        count_text(one.duplicates),
        count_text(one.window),
        bytes_text(one.credit_bytes),
        age_text(one.lag_s),
    ]


def _curves(record: RunRecord) -> list[Markup | None]:
    metrics, end_s = record.metrics, record.metrics.end_s

    def rates(metric: str, labelled: str = "slot") -> list[Line]:
        return [
            Line(getattr(key, labelled), rate(metrics.points(key))) for key in metrics.find(metric)
        ]

    lags = [
        Line(key.slot, metrics.points(key))
        for metric in ("receiver_lag_s", "remote_ack_s")
        for key in metrics.find(metric)
    ]
    return [
        chart("Acknowledged by receivers", "packets/s", rates("remote_acked"), end_s),
        chart("Not sent on", "packets/s", rates("remote_dropped", "reason"), end_s),
        chart("Accepted from hosts", "packets/s", rates("receiver_accepted"), end_s),
        chart("From capture to arrival, and waiting for an acknowledgement", "s", lags, end_s),
    ]
