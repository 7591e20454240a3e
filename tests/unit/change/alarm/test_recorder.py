"""Shards around an alarm are pinned, those that are written after it too."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import pytest
import torch

from asys_bench.change.alarm import recorder
from asys_bench.change.alarm.recorder import FlightRecorder
from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.contracts.stats import StatsPage
from asys_bench.monitors.alarm_page import AlarmsOnPage
from asys_bench.sinks.archive.pins import pin_of, stored_shards
from tests.conformance.support import eventually

ARCHIVE = runpy.run_path(str(Path(__file__).parents[2] / "sinks" / "archive" / "conftest.py"))
CONTEXT_OF = runpy.run_path(str(Path(__file__).parent / "context.py"))["context_of"]
SECOND = 1_000_000_000
ROWS = torch.arange(64 * 256, dtype=torch.float32).reshape(64, 256)
WALL_NS = 1_000_000
"""The rig's wall clock is this far ahead of its monotonic one."""


@pytest.fixture
def archive(tmp_path):
    made = ARCHIVE["Rig"](tmp_path)
    yield made
    made.page.close()


class Bus:
    """Counters of a bus with one group of readers."""

    produced = ready = 0

    def account(self):
        group = GroupAccount("archive", self.produced - self.ready, 0, 0, 0, self.ready)
        return BusAccount(self.produced, {}, 0, (group,))


@pytest.fixture
def recording(archive, monkeypatch):
    """recording(before_s, after_s) -> (a recorder over the rig's run, its bus)"""
    monkeypatch.setattr(recorder, "PIN_EVERY_S", 0.02)
    monkeypatch.setattr(recorder, "LAST_LEASE_S", 0.05)
    page, bus = StatsPage.create(["alarm-0"]), Bus()

    def make(before_s, after_s):
        slot = page.slot("alarm-0")
        context = CONTEXT_OF(slot, archive.run_dir, account=bus.account, wall_offset_ns=WALL_NS)
        one = FlightRecorder(
            context, before_s, after_s, AlarmsOnPage(slot).until, slot.counter("pinned")
        )
        made.append(one)
        return one, bus

    made: list[FlightRecorder] = []
    yield make
    for one in made:
        one.close(60)
    page.close()


def pinned(archive):
    return {path.name for path in archive.shards() if pin_of(path).exists()}


def write(archive, worker, seqs, ago_s):
    """A packet each, captured that long ago, in shards of about four."""
    for seq in seqs:
        stamp = time.monotonic_ns() - int(ago_s * SECOND)
        archive.feed(worker, archive.packet(ROWS, seq, timestamp_ns=stamp))


def test_what_was_captured_before_and_after_an_alarm_is_pinned_and_older_shards_are_not(
    archive, recording
):
    worker = archive.start(shard_rotate_mib=0.25, fsync="never")
    write(archive, worker, range(12), ago_s=100)
    old = {path.name for path in archive.shards()}
    write(archive, worker, range(12, 24), ago_s=5)
    one, bus = recording(before_s=30, after_s=0.4)
    bus.produced, bus.ready = 36, 12  # the window stays until those that come after are written
    one.record()
    before = {path.name for path in archive.shards()} - old
    eventually(lambda: before <= pinned(archive), "pins of what was before")
    write(archive, worker, range(24, 36), ago_s=0)
    worker.close()
    bus.ready = 0
    after = {path.name for path in archive.shards()} - old - before
    assert len(after) >= 2
    eventually(lambda: after <= pinned(archive), "pins of what came after")
    # The shard that spans both sides of the window is kept; those before it are not.
    closed_before = {
        shard.path.name
        for shard in stored_shards(archive.run_dir)
        if shard.sidecar and shard.sidecar.last_ns < time.monotonic_ns() + WALL_NS - 50 * SECOND
    }
    assert len(closed_before) >= 2
    assert not closed_before & pinned(archive)
    eventually(lambda: one._window is None, "the end of the window")


def test_the_window_lasts_until_the_archiver_has_written_what_was_captured_in_it(
    archive, recording
):
    worker = archive.start(shard_rotate_mib=0.25, fsync="never")
    write(archive, worker, range(4), ago_s=1)
    one, bus = recording(before_s=10, after_s=0.05)
    bus.produced, bus.ready = 16, 12  # twelve packets of the window wait for the archiver
    one.record()
    time.sleep(0.3)  # the window is over long ago
    assert one._window is not None
    write(archive, worker, range(4, 16), ago_s=0.2)
    bus.produced, bus.ready = 40, 24
    worker.close()
    eventually(lambda: one._window is None, "the end of the window")
    assert pinned(archive) == {path.name for path in archive.shards()}


def test_a_second_alarm_makes_the_window_longer(archive, recording):
    one, _ = recording(before_s=10, after_s=5)
    one.record()
    first = (one._window.from_ns, one._window.until_ns, one._until.value)
    time.sleep(0.01)
    one.record()
    assert one._window.from_ns == first[0]
    assert one._window.until_ns > first[1]
    assert one._until.value > first[2]


def test_without_an_archive_the_rate_still_rises_and_it_is_said_once(archive, recording, caplog):
    one, _ = recording(before_s=10, after_s=5)
    began_ns = time.monotonic_ns()
    one.record()
    assert one._until.value >= began_ns + 5 * SECOND
    eventually(lambda: "pins nothing" in caplog.text, "a warning")
    time.sleep(0.1)
    assert caplog.text.count("pins nothing") == 1
    one.close(60)
    assert one._until.value == 0


def test_a_new_incarnation_asks_for_nothing_that_an_earlier_one_asked_for(archive, recording):
    first, _ = recording(before_s=10, after_s=500)
    first.record()
    second, _ = recording(before_s=10, after_s=500)
    assert second._until.value == 0
