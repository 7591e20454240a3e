"""Order, numbers and words that all bench reporters share; the scales and curves of the plots."""

from __future__ import annotations

import math

import pytest

from asys_bench.contracts.stats import bucket_of
from asys_bench.harness.results.result import Case, Hdr, Interval, Needs, Subject, TargetResult
from asys_bench.harness.results.result_run import CaseStatus, Op, TargetKind, Verdict
from asys_bench.reports.bench_findings.finding import Finding
from asys_bench.reports.bench_html.spectrum import Curve, quantile, spectrum, steps
from asys_bench.reports.bench_html.target_rows import interval_bar
from asys_bench.reports.page.markup import Markup, name, tag
from asys_bench.reports.page.percentiles import nines, percentile_scale
from asys_bench.reports.page.quantity import (
    compact,
    digits_apart,
    duration,
    exact,
    number,
    share,
)
from asys_bench.reports.page.scale import LEFT, RIGHT, value_scale


def finding(**changes: object) -> Finding:
    target = TargetResult(
        expr="x_ms.p99 <= 0.05", where="s.yaml:1", kind=TargetKind.QUANTILE, method="m", gated=True,
        metric="x_ms", stat="p99", unit="ms", op=Op.AT_MOST, bound=0.05, observed=0.04,
        ci=Interval(low=None, high=0.0499999, confidence=0.975), alpha_spent=0.025, look=1, looks=2,
        margin=0.2, verdict=Verdict.PASS, reason="r",
    ).model_copy(update=changes)  # fmt: skip
    subject = Subject(kind="backend", name="b")
    case = Case(
        id="a[b]", family="a", where="s.yaml:1", gated=True, scenario="closed", subject=subject,
        status=CaseStatus.MEASURED, targets=[target],
    )  # fmt: skip
    return Finding(case, target)


def test_numbers_are_short_and_never_rounded_onto_the_limit() -> None:
    assert [number(x) for x in (0.0, 0.0123456, 1.0, 99.96, 1234.5, -0.5, None)] == [
        "0", "0.0123", "1.00", "100.0", "1,234", "-0.500", "-",
    ]  # fmt: skip
    assert number(1.5e-9) == "1.50e-09"
    assert exact(1_000_000.0) == "1,000,000"
    assert digits_apart([0.0499999, None], 0.05) == 6
    shown = finding()
    assert shown.interval == "? .. 0.0499999"
    assert shown.value == "0.0400000 ms"
    assert (shown.limit, shown.margin, shown.confidence) == ("<= 0.05 ms", "20 % inside", "97.5 %")


def test_what_is_unknown_is_not_zero() -> None:
    shown = finding(observed=None, ci=None, margin=None, bound=None)
    assert (shown.value, shown.interval, shown.margin) == ("no data", "-", "-")
    assert "no limit is known" in interval_bar(shown)


def test_rounds_needed_are_named_only_for_what_is_undecided() -> None:
    needs = Needs(rounds=1, samples=1200, advice="more")
    assert finding(needs=needs).rounds_needed == "-"
    undecided = finding(verdict=Verdict.INCONCLUSIVE, needs=needs)
    assert (undecided.rounds_needed, undecided.needs) == (
        "1",
        "about 1 more round or 1,200 more samples",
    )
    advised = finding(verdict=Verdict.INCONCLUSIVE, needs=Needs(advice="find what differs"))
    assert (advised.rounds_needed, advised.needs) == ("?", "find what differs")


def test_counts_are_off_by_so_many() -> None:
    torn = finding(op=Op.EQUAL, bound=0.0, observed=3.0, margin=-3.0, unit="", ci=None)
    exact_count = finding(kind=TargetKind.INVARIANT)
    assert (exact_count.interval, exact_count.confidence) == ("exact", "")
    assert (torn.value, torn.limit, torn.margin) == ("3", "== 0", "off by 3")
    assert finding(op=Op.EQUAL, bound=0.0, observed=0.0, margin=-0.0, ci=None).margin == "met"
    assert finding(op=Op.AT_LEAST, margin=22.0).margin == "23 x limit"


def test_words_for_shares_durations_and_axes() -> None:
    assert [share(x) for x in (0.004, 0.034, -0.52, 0.997)] == ["0.4 %", "3.4 %", "52 %", "> 99 %"]
    assert [duration(x) for x in (2.15, 40, 93.4, 7500)] == [
        "2.1 s",
        "40 s",
        "1 min 33 s",
        "2 h 05 min",
    ]
    assert [compact(x) for x in (0.05, 1500, 2e7, 3e9)] == ["0.05", "1.5k", "20M", "3G"]


def test_scales_place_values_and_choose_round_ticks() -> None:
    narrow = value_scale([40.0, 60.0], 100.0, 0.0)
    assert not narrow.log
    assert narrow.ticks() == [40.0, 50.0, 60.0]
    assert narrow.place(50.0) == pytest.approx(50.0)
    assert narrow.place(1e9) == 0.0
    wide = value_scale([0.01, 10.0], 0.0, 100.0)
    assert wide.log
    assert wide.place(math.sqrt(0.1)) == pytest.approx(50.0)
    assert value_scale([], 0.0, 1.0).place(0.5) == 0.5
    assert value_scale([7.0, 7.0], 0.0, 1.0).place(7.0) == pytest.approx(0.5)
    assert [nines(x) for x in (0.0, 0.9, 0.99)] == pytest.approx([0.0, 1.0, 2.0])
    assert percentile_scale(10_000).place(nines(0.99)) == pytest.approx((LEFT + RIGHT) / 2)


def test_a_curve_reads_back_the_quantiles_of_its_histogram() -> None:
    values = list(range(1, 1001))
    buckets: dict[int, int] = {}
    for value in values:
        buckets[bucket_of(value)] = buckets.get(bucket_of(value), 0) + 1
    hdr = Hdr(unit="ns", scale=1e-3, count=1000, maximum=1000, buckets=sorted(buckets.items()))
    line = steps(hdr)
    assert line[-1] == (1.0, 1.0)
    assert quantile(line, 0.99) == pytest.approx(0.99, rel=0.0625)
    drawn = spectrum("x by percentile", "us", [Curve("one", hdr, [finding().target])])
    assert drawn is not None
    assert "p99 &lt;= 0.05 ms" in drawn
    assert "p99 " in drawn
    few = hdr.model_copy(update={"count": 2, "buckets": hdr.buckets[:2], "maximum": 2})
    shown = spectrum("x", "us", [Curve("few", few)])
    assert shown is not None
    assert "p99" not in shown, "two samples have no 99th percentile"
    nothing = hdr.model_copy(update={"count": 0, "buckets": []})
    assert spectrum("x", "us", [Curve("none", nothing)]) is None


def test_markup_escapes_all_but_markup() -> None:
    assert tag("p", "<b>&", tag("i", '"'), class_="x<y") == (
        '<p class="x&lt;y">&lt;b&gt;&amp;<i>&quot;</i></p>'
    )
    assert tag("line", x1=1.23456, y1=None) == '<line x1="1.23"/>'
    assert name("a.b<c>[d]") == "a.<wbr>b&lt;c&gt;<wbr>[d]"
    assert isinstance(name("x"), Markup)
