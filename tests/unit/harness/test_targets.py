"""The grammar: what it reads, and how it says no."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.scenario import MetricKind, MetricSpec
from asys_bench.harness.planning.targets import TargetError, parse_target
from asys_bench.harness.results.result_run import Op, TargetKind

METRICS = {
    "hook_latency_ms": MetricSpec("lower", MetricKind.SAMPLES, ""),
    "throughput_gbps": MetricSpec("higher", MetricKind.ROUND, ""),
    "torn_frames": MetricSpec("lower", MetricKind.COUNT, ""),
    "model_slowdown": MetricSpec("lower", MetricKind.SAMPLES, "", relative_only=True),
}
REFERENCES = ("memcpy", "no_hook", "baseline")


def parse(text):
    return parse_target(text, METRICS, REFERENCES)


@pytest.mark.parametrize(
    ("text", "kind", "bound", "reference", "offset", "unit"),
    [
        ("hook_latency_ms.p99 <= 0.05", TargetKind.QUANTILE, 0.05, None, 0, "ms"),
        ("hook_latency_ms.p99.9<=1e-1", TargetKind.QUANTILE, 0.1, None, 0, "ms"),
        ("hook_latency_ms.median <= 1.3 x memcpy + 0.006", TargetKind.RATIO, 1.3, "memcpy", 0.006,
         "x limit"),
        ("throughput_gbps.median >= 0.8 x memcpy", TargetKind.RATIO, 0.8, "memcpy", 0, "x memcpy"),
        ("throughput_gbps.median >= 1 x baseline", TargetKind.BASELINE, 1, "baseline", 0,
         "x baseline"),
        ("throughput_gbps.min >= 2", TargetKind.MEDIAN, 2, None, 0, "GB/s"),
        ("torn_frames.count == 0", TargetKind.INVARIANT, 0, None, 0, ""),
        ("torn_frames.rate <= 0.001", TargetKind.QUANTILE, 0.001, None, 0, ""),
        ("model_slowdown.median <= 1.03 x no_hook", TargetKind.RATIO, 1.03, "no_hook", 0,
         "x no_hook"),
    ],
)  # fmt: skip
def test_it_reads(text, kind, bound, reference, offset, unit):
    target = parse(text)
    assert (target.kind, target.bound, target.reference, target.offset, target.unit) == (
        kind, bound, reference, offset, unit
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hook_latency_ms <= 1", "metric.stat op bound"),
        ("hook_latency.p99 <= 1", "unknown metric"),
        ("hook_latency_ms.p99 >= 1", "wrong direction"),
        ("throughput_gbps.median <= 1", "wrong direction"),
        ("hook_latency_ms.max <= 1", "never gated"),
        ("throughput_gbps.p99 >= 1", "does not fit"),
        ("hook_latency_ms.p0 <= 1", "percentile"),
        ("hook_latency_ms.p99 == 1", "counts only"),
        ("hook_latency_ms.p99 < 1", "unknown operator"),
        ("hook_latency_ms.p99 <= fast", "no bound"),
        ("hook_latency_ms.p99 <= 1 x memcopy", "unknown reference"),
        ("hook_latency_ms.p99 <= -1 x memcpy", "positive"),
        ("torn_frames.count <= 1 x memcpy", "numbers"),
        ("model_slowdown.median <= 1.03", "against a reference"),
    ],
)
def test_it_says_no(text, says):
    with pytest.raises(TargetError, match=says):
        parse(text)


def test_a_near_miss_is_named():
    with pytest.raises(TargetError) as caught:
        parse("hook_latancy_ms.p99 <= 1")
    assert "hook_latency_ms" in caught.value.fix


@given(
    st.sampled_from(["p50", "p99", "p99.9", "median", "mean", "min"]),
    st.floats(1e-9, 1e9),
    st.sampled_from(["", " x memcpy", " x memcpy + 0.25"]),
    st.text(" \t", max_size=3),
)
def test_what_is_written_is_what_is_read(stat, bound, tail, space):
    target = parse(f"hook_latency_ms{space}.{stat}{space}<={space}{bound!r}{tail}")
    assert (target.stat, target.op, target.bound) == (stat, Op.AT_MOST, bound)
    assert target.offset == (0.25 if "+" in tail else 0)


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text):
    with contextlib.suppress(TargetError):
        assert parse(text).expr == text.strip()
