from __future__ import annotations

import math
import random

import pytest

from asys_bench.contracts.stats import HISTOGRAM_BUCKETS, HistogramSnapshot, StatsPage, bucket_of
from asys_bench.monitors.rates import (
    EMPTY_HISTOGRAM,
    Window,
    increase,
    merge,
    per_second,
    quantiles,
    subtract,
)


def histogram(values: list[int]) -> HistogramSnapshot:
    buckets = [0] * HISTOGRAM_BUCKETS
    for value in values:
        buckets[bucket_of(value)] += 1
    return HistogramSnapshot(len(values), sum(values), max(values, default=0), tuple(buckets))


def test_a_difference_of_histograms_is_the_histogram_of_what_came_between() -> None:
    rng = random.Random(1)
    early = [rng.randrange(1, 10**6) for _ in range(300)]
    late = [rng.randrange(1, 10**5) for _ in range(200)]
    got, want = subtract(histogram(early + late), histogram(early)), histogram(late)
    assert (got.count, got.total, got.buckets) == (want.count, want.total, want.buckets)
    assert want.maximum <= got.maximum <= want.maximum * 1.0625


def test_quantiles_of_an_interval_ignore_the_past() -> None:
    slow, fast = [1_000_000] * 1000, [10_000] * 50
    q = quantiles(subtract(histogram(slow + fast), histogram(slow)), 1e-3)
    assert q.count == 50
    assert 10.0 <= q.p50 <= 10.7
    assert q.max <= 10.7


def test_an_empty_interval_has_no_quantiles() -> None:
    same = histogram([5, 6, 7])
    assert subtract(same, same) == EMPTY_HISTOGRAM
    assert all(
        math.isnan(v) for v in (quantiles(EMPTY_HISTOGRAM).p50, quantiles(EMPTY_HISTOGRAM).max)
    )


def test_the_first_interval_is_the_whole_histogram_with_its_exact_maximum() -> None:
    first = histogram([3, 100_001])
    assert subtract(first, EMPTY_HISTOGRAM) == first


def test_merged_histograms_count_everything() -> None:
    merged = merge([histogram([1, 2]), EMPTY_HISTOGRAM, histogram([3000])])
    assert (merged.count, merged.total, merged.maximum) == (3, 3003, 3000)
    assert merge([]) == EMPTY_HISTOGRAM


def test_a_snapshot_of_the_page_can_be_subtracted_too() -> None:
    page = StatsPage.create(["host"])
    recorder = page.slot("host").histogram("hook_latency_ns")
    recorder.record(10)
    before = recorder.snapshot()
    recorder.record(20)
    assert subtract(recorder.snapshot(), before).quantile(0.5) == 20
    del recorder
    page.close()


def test_rates_never_go_below_zero_and_are_unknown_over_no_time() -> None:
    assert per_second(30, 10, 2.0) == 10
    assert per_second(5, 10, 2.0) == 0
    assert math.isnan(per_second(5, 1, 0.0))
    assert (increase(7, 3), increase(3, 7)) == (4, 0)


def test_a_window_compares_with_the_youngest_reading_that_is_old_enough() -> None:
    window: Window[str] = Window(2.0)
    second = 1_000_000_000
    assert window.add(0, "a") == (0.0, "a")
    assert window.add(1 * second, "b") == (1.0, "a")
    assert window.add(2 * second, "c") == (2.0, "a")
    assert window.add(3 * second, "d") == (2.0, "b")


@pytest.mark.parametrize("gap_s", [10, 100])
def test_a_window_outlives_a_pause_longer_than_itself(gap_s: int) -> None:
    window: Window[str] = Window(2.0)
    window.add(0, "a")
    assert window.add(gap_s * 1_000_000_000, "b") == (float(gap_s), "a")
