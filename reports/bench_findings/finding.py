"""`Finding`: one target of one case, with its numbers as text. `findings` puts the worst first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from asys_bench.contracts.reporter import ReportError
from asys_bench.harness.results.result import SCHEMA_ID, Case, Result, TargetResult
from asys_bench.harness.results.result_run import CaseStatus, Op, TargetKind, Verdict
from asys_bench.reports.page.quantity import (
    NOTHING,
    confidence,
    digits_apart,
    exact,
    number,
    share,
    some,
    with_unit,
)

WORST_FIRST = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
SYMBOLS = {
    Verdict.PASS: "\u2705",
    Verdict.FAIL: "\u274c",
    Verdict.INCONCLUSIVE: "\u2754",
    Verdict.INVALID: "\u26d4",
    Verdict.REFUSED: "\u26d4",
    Verdict.INTERRUPTED: "\u26a0\ufe0f",
}


@dataclass(frozen=True)
class Finding:
    case: Case
    target: TargetResult

    @property
    def verdict(self) -> Verdict:
        return self.target.verdict

    @property
    def gated(self) -> bool:
        """It counts for the suite's verdict."""
        return self.target.gated

    @property
    def what(self) -> str:
        """`hook_latency_ms.p99`."""
        return f"{self.target.metric}.{self.target.stat}"

    @property
    def value(self) -> str:
        """`0.0780 ms`, or `no data`."""
        if self.target.observed is None:
            return "no data"
        return with_unit(self._number(self.target.observed), self.target.unit)

    @property
    def interval(self) -> str:
        """`0.0710 .. 0.0940`; `?` for a side that is not bounded."""
        ci = self.target.ci
        if ci is None:
            return NOTHING
        if self._exact:
            return "exact"
        low, high = ("?" if x is None else self._number(x) for x in (ci.low, ci.high))
        return f"{low} .. {high}"

    @property
    def confidence(self) -> str:
        """`97.5 %`; empty without an interval."""
        ci = self.target.ci
        return "" if ci is None or self._exact else confidence(ci.confidence)

    @property
    def limit(self) -> str:
        """`<= 0.05 ms`, `>= 0.8 x memcpy`."""
        return f"{self.target.op} {with_unit(exact(self.target.bound), self.target.unit)}"

    @property
    def margin(self) -> str:
        """`52 % inside`, `56 % outside`, `23 x limit`; `met` or `off by 1` for counts."""
        margin = self.target.margin
        if margin is None:
            return NOTHING
        if self.target.op is Op.EQUAL or not self.target.bound:
            return "met" if margin == 0 else f"off by {exact(abs(margin))}"
        if margin > 10:
            return f"{1 + margin:,.0f} x limit"
        return f"{share(margin)} {'inside' if margin >= 0 else 'outside'}"

    @property
    def rounds_needed(self) -> str:
        """`36` further rounds, about; `?` when no number is known to decide; `-` when decided."""
        if self.verdict is not Verdict.INCONCLUSIVE:
            return NOTHING
        needs = self.target.needs
        return "?" if needs is None or needs.rounds is None else f"{needs.rounds:,}"

    @property
    def needs(self) -> str:
        """What would decide it, as a sentence; empty when decided."""
        if self.verdict is not Verdict.INCONCLUSIVE or self.target.needs is None:
            return ""
        needs, parts = self.target.needs, []
        if needs.rounds is not None:
            parts.append(f"about {some(needs.rounds, 'more round')}")
        if needs.samples is not None:
            parts.append(f"{some(needs.samples, 'more sample')}")
        said = " or ".join(parts)
        if needs.advice and needs.rounds is None:
            return f"{said}; {needs.advice}" if said else needs.advice
        return said

    @property
    def _exact(self) -> bool:
        """A count is what it is: it has no interval."""
        return self.target.kind is TargetKind.INVARIANT

    def _number(self, x: float) -> str:
        ci = self.target.ci
        values = (self.target.observed, *((ci.low, ci.high) if ci else ()))
        if all(v is None or float(v).is_integer() for v in values) and abs(x) < 1e12:
            return f"{x:,.0f}"
        return number(x, digits_apart(values, self.target.bound))


def findings(result: Result) -> list[Finding]:
    """Every target: those that count first, by verdict, then by margin with the smallest first."""
    found = [Finding(case, target) for case in result.cases for target in case.targets]

    def badness(one: Finding) -> tuple[bool, int, float]:
        margin = one.target.margin
        rank = WORST_FIRST.index(one.verdict) if one.verdict in WORST_FIRST else -1
        if margin is None:
            margin = float("-inf")
        elif one.target.op is Op.EQUAL and margin == 0:
            margin = float("inf")  # met exactly, which is no near miss
        return not one.gated, rank, margin

    return sorted(found, key=badness)


def unmeasured(result: Result) -> list[Case]:
    """The cases without a usable measurement, references included."""
    return [case for case in result.cases if case.status is not CaseStatus.MEASURED]


# A stored result as a `Result`, checked; and made safe to show.

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters, which move a terminal's cursor and are illegal in XML, and those that reorder
text: in a document they only serve to show something else than what is there."""


def read(data: Mapping[str, Any]) -> Result:
    """The result in `data`, as it lies in the result file.

    Raises:
        ReportError: another schema, or fields that do not fit it (NaN and infinity among them).
    """
    if data.get("schema") != SCHEMA_ID:
        raise ReportError(f"schema is {data.get('schema')!r}; this reads {SCHEMA_ID!r}")
    try:
        return Result.model_validate(dict(data))
    except ValidationError as error:
        raise ReportError(f"not a bench result: {error}") from error


def displayable(result: Result) -> Result:
    """The same result with every unprintable character of its texts replaced by U+FFFD."""
    return Result.model_validate(_clean(result.model_dump(by_alias=True)))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value.replace("\r\n", "\n"))
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value
