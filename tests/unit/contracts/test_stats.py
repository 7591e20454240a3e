"""The stats page: shared, self-describing, one writer per slot."""

from __future__ import annotations

import math
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.contracts.stats import (
    MAGIC,
    SLOT_BYTES,
    HistogramSnapshot,
    RunState,
    SlotField,
    StatsError,
    StatsPage,
    WorkerState,
    bucket_of,
    bucket_upper,
    metric_name,
    slot_bytes,
    split_metric_name,
)


@pytest.fixture
def page():
    page = StatsPage.create(["host", "trainer-0"])
    yield page
    page.close()


def test_another_mapping_sees_what_the_writer_wrote(page):
    slot = page.slot("trainer-0")
    slot.state = WorkerState.READY
    slot.counter("rows", hook="a").add(3)
    slot.gauge("fvu", hook="a").set(-0.25)
    slot.histogram("latency_ns").record(1000)
    page.run_state = RunState.DRAINING

    other = StatsPage.attach(os.dup(page.fd))
    try:
        metrics = other.slot("trainer-0").metrics()
        assert metrics["rows{hook=a}"].value == 3
        assert metrics["fvu{hook=a}"].value == -0.25
        assert metrics["latency_ns"].snapshot().count == 1
        assert other.slot("trainer-0").state is WorkerState.READY
        assert other.run_state is RunState.DRAINING
        assert other.owner_pid == os.getpid()
    finally:
        other.close()


def test_time_left_passes_on_the_readers_clock_whatever_the_writer_reads(page, monkeypatch):
    assert page.drain_left_s == math.inf
    now_ns = [5_000_000_000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns[0])
    page.drain_left_s = 10.0
    other = StatsPage.attach(os.dup(page.fd))
    try:
        now_ns[0] = 90_000_000_000_000  # the reader is a day ahead, or has come late
        assert other.drain_left_s == 10.0
        now_ns[0] += 4_000_000_000
        assert other.drain_left_s == 6.0
        page.drain_left_s = 7.5  # as the writer, who waits, says it
        assert other.drain_left_s == 7.5
        now_ns[0] += 8_000_000_000
        assert other.drain_left_s == -0.5
        page.drain_left_s = -1.0
        assert -1e-6 < other.drain_left_s < 1e-6, "over, and not: no drain"
    finally:
        other.close()


def test_a_writer_on_another_clock_is_silent_since_its_heartbeat_was_first_seen(page, monkeypatch):
    slot = page.slot("trainer-0")
    assert slot.silence_s(1) == math.inf
    now_ns = [50_000_000_000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns[0])
    slot.occupy()
    assert slot.silence_s(53_000_000_000) == 3.0, "on the same clock to the nanosecond"
    slot.beat(ahead_s=20.0)
    assert slot.silence_s(53_000_000_000) == -17.0

    slot.set(SlotField.CLOCK, slot.get(SlotField.CLOCK) + 1)
    now_ns[0] = 3 * 86_400_000_000_000
    for here_ns in (60_000_000_000, 10 * 86_400_000_000_000):  # days behind it, days ahead of it
        slot.beat()
        assert slot.silence_s(here_ns) == 0.0
        assert slot.silence_s(here_ns + 11_000_000_000) == 11.0, "a hang is found all the same"
        now_ns[0] += 1
        slot.beat(ahead_s=20.0)
        assert slot.silence_s(here_ns + 12_000_000_000) == -20.0
        assert slot.silence_s(here_ns + 42_000_000_000) == 10.0
        now_ns[0] += 1
    slot.set(SlotField.CLOCK, 0)  # nobody knows: as on another clock
    assert slot.silence_s(1) == -20.0


def test_packets_are_dated_on_the_owners_clock(page, monkeypatch):
    assert page.clock_shift_ns == 0
    day_ns = 86_400_000_000_000
    ahead = time.monotonic_ns() + day_ns
    monkeypatch.setattr("asys_bench.contracts.stats.own_clock", lambda: 5)
    monkeypatch.setattr(time, "monotonic_ns", lambda: ahead)
    assert abs(page.clock_shift_ns + day_ns) < 60_000_000_000


def test_a_gauge_is_unknown_until_it_is_set_and_stays_set_for_a_restarted_worker(page):
    gauge = page.slot("host").gauge("survival")
    assert math.isnan(gauge.value), "0 would be a figure that nobody measured"
    gauge.set(0.9)
    again = StatsPage.attach(os.dup(page.fd))
    assert again.slot("host").gauge("survival").value == 0.9
    again.close()


def test_a_restarted_writer_goes_on_counting(page):
    page.slot("host").counter("steps").add(5)
    again = StatsPage.attach(os.dup(page.fd))
    again.slot("host").counter("steps").add(2)
    assert page.slot("host").counter("steps").value == 7
    again.close()


def test_a_metric_keeps_its_kind_and_a_full_slot_says_so(page):
    slot = page.slot("host")
    slot.counter("x")
    with pytest.raises(StatsError, match="COUNTER"):
        slot.gauge("x")
    for index in range(SLOT_BYTES // 4024):
        slot.counter(f"{index:0>4000}")
    with pytest.raises(StatsError, match=f"no room.*{SLOT_BYTES} bytes"):
        slot.counter("one too many".ljust(4096))
    with pytest.raises(StatsError, match="valid: host, trainer-0"):
        page.slot("nobody")


def test_something_else_than_a_stats_page_is_refused(tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(os.urandom(4096))
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(StatsError):
        StatsPage.attach(fd)
    os.close(fd)


def test_a_page_of_the_layout_before_is_refused_and_says_which_it_is(tmp_path):
    path = tmp_path / "old"
    old = MAGIC & ~0xFF | 1
    path.write_bytes(old.to_bytes(8, "little") + (1).to_bytes(8, "little") + bytes(2 << 20))
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(StatsError, match="layout version 1, this build reads 2"):
        StatsPage.attach(fd)
    os.close(fd)


def test_a_slot_is_as_large_as_its_labels_need_and_the_next_one_follows_it():
    hooks = [f"encoder.layers.{n}.mlp" for n in range(2048)]
    page = StatsPage.create({"host": slot_bytes(hooks, 16, 1), "monitor": SLOT_BYTES, "z": 4096})
    other = StatsPage.attach(os.dup(page.fd))
    try:
        for hook in hooks:
            for metric in range(16):
                page.slot("host").counter(f"hook_number_{metric}", hook=hook).add(metric)
            page.slot("host").histogram("hook_latency_ns", hook=hook).record(7)
        page.slot("z").gauge("last").set(2.5)
        read = other.slot("host").metrics()
        assert len(read) == 17 * 2048
        assert read["hook_number_15{hook=encoder.layers.2047.mlp}"].value == 15
        assert read["hook_latency_ns{hook=encoder.layers.2047.mlp}"].snapshot().maximum == 7
        assert other.slot("z").metrics()["last"].value == 2.5
        assert os.fstat(page.fd).st_size < 24 << 20
    finally:
        other.close()
        page.close()


def test_what_a_writer_left_that_was_killed_half_way_is_not_counted(page):
    slot = page.slot("host")
    slot.cells[34:64] = memoryview(b"half a name " * 20).cast("q")  # not yet in SlotField.ENTRIES
    assert (slot.metrics(), slot.counter("x").value) == ({}, 0)


def test_nothing_is_left_open_after_close():
    before = set(os.listdir("/proc/self/fd"))
    page = StatsPage.create(["a", "b", "c"])
    page.slot("a").histogram("h").record(1)
    page.slot("b").set(SlotField.PID, 1)
    page.close()
    page.close()
    assert set(os.listdir("/proc/self/fd")) == before


@given(st.integers(0, 2**43 - 1))
def test_a_value_lies_in_its_bucket_and_the_bucket_is_narrow(value):
    index = bucket_of(value)
    upper = bucket_upper(index)
    lower = bucket_upper(index - 1) + 1 if index else 0
    assert lower <= value <= upper
    assert upper - lower <= max(0, lower / 16)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_a_quantile_is_within_a_bucket_of_the_exact_one(values, q):
    page = StatsPage.create(["s"])
    histogram = page.slot("s").histogram("h")
    for value in values:
        histogram.record(value)
    snapshot = histogram.snapshot()
    page.close()
    exact = sorted(values)[max(1, -int(-q * len(values) // 1)) - 1]
    assert exact <= snapshot.quantile(q) <= exact + exact / 16 + 1
    assert (snapshot.count, snapshot.total) == (len(values), sum(values))


def test_an_empty_histogram_has_no_quantile():
    assert HistogramSnapshot(0, 0, 0, ()).quantile(0.5) != HistogramSnapshot(0, 0, 0, ()).quantile(
        0.5
    )


@given(
    st.dictionaries(
        st.sampled_from(["hook", "group", "reason"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    )
)
def test_labels_survive_a_metric_name(labels):
    assert split_metric_name(metric_name("m", **labels)) == ("m", labels)
