"""Two stored results side by side. They did not run interleaved, so there is no verdict in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asys_bench.harness.results.result import Estimate, Result
from asys_bench.harness.results.words import Better

SHOWN = ("median", "p99")
LABEL = "not interleaved"
WARNING = (
    "not interleaved: the two ran at different times, so a difference may be the machine's. To judge "
    "it, run both sides now: `baseline: {python: ...}` in the suite and a target `k x baseline`."
)


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    metric: str
    stat: str
    unit: str
    before: Estimate
    after: Estimate
    change: float
    """after / before - 1."""
    word: str
    """better | worse | within their intervals."""


def compare(before: Result, after: Result) -> list[Row]:
    """Every metric that both have, greatest change for the worse first."""
    old = {case.id: case for case in before.cases}
    rows = []
    for case in after.cases:
        for name, metric in case.metrics.items():
            earlier = old[case.id].metrics.get(name) if case.id in old else None
            for stat in SHOWN:
                a = earlier.stats.get(stat) if earlier is not None else None
                b = metric.stats.get(stat)
                if a is None or b is None or a.value == 0:
                    continue
                change = b.value / a.value - 1
                rows.append(Row(case.id, name, stat, metric.unit, a, b, change,
                                _word(a, b, metric.better)))  # fmt: skip
    order = {"worse": 0, "within their intervals": 1, "better": 2}
    return sorted(rows, key=lambda row: (order[row.word], -abs(row.change)))


def differences(before: Result, after: Result) -> list[str]:
    """Why the two may not be comparable at all."""
    found = [WARNING]
    if before.machine.identity_sha256 != after.machine.identity_sha256:
        keys = sorted({*before.machine.identity, *after.machine.identity})
        changed = [
            f"{key} {before.machine.identity.get(key)} -> {after.machine.identity.get(key)}"
            for key in keys
            if before.machine.identity.get(key) != after.machine.identity.get(key)
        ]
        found.append(f"different machines: {'; '.join(changed)}")
    if before.run.suite.sha256 != after.run.suite.sha256:
        found.append("different suites: cases with one id may not measure the same thing")
    return found


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that can be pasted in a pull request."""
    cells = [list(map(_escape, row)) for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]

    def line(values: Sequence[str]) -> str:
        padded = (value.ljust(width) for value, width in zip(values, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, cells)])


def shown(estimate: Estimate | None) -> str:
    """`3.4 [3.1, 3.9]`."""
    if estimate is None:
        return "-"
    if estimate.ci is None:
        return f"{estimate.value:.4g}"
    low, high = ("?" if v is None else f"{v:.4g}" for v in (estimate.ci.low, estimate.ci.high))
    return f"{estimate.value:.4g} [{low}, {high}]"


def _word(before: Estimate, after: Estimate, better: Better) -> str:
    a, b = before.ci, after.ci
    if a is None or b is None or None in (a.low, a.high, b.low, b.high):
        return "within their intervals"
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert b.high is not None
    if a.low <= b.high and b.low <= a.high:
        return "within their intervals"
    higher = b.low > a.high
    return "better" if higher == (better is Better.HIGHER) else "worse"


def _escape(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
