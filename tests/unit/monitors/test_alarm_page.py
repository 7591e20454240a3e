"""What a host's loop reads of alarms: memory, nothing else."""

from __future__ import annotations

import pytest

from asys_bench.contracts.stats import StatsPage
from asys_bench.monitors.alarm_page import Alarm, Alarms, AlarmsOnPage, recording_until


@pytest.fixture
def page():
    page = StatsPage.create(["host", "alarm-0", "alarm-1"])
    yield page
    page.close()


def test_an_alarm_is_seen_as_soon_as_it_is_counted(page):
    raising = AlarmsOnPage(page.slot("alarm-0"))
    raising.watch("h fvu")
    seen = Alarms(page)
    assert not seen
    assert list(seen) == []
    raising.raise_one("h fvu", 120, 0.5, 0.1)
    assert seen
    assert seen.count == 1
    assert list(seen) == [Alarm("h fvu", 1, 120, 0.5, 0.1)]
    raising.raise_one("h fvu", 130, 0.6, 0.2)
    raising.watch("x{y=1}, z")
    raising.raise_one("x{y=1}, z", 140, 1.0, 2.0)
    assert seen.count == 3
    assert list(seen) == [Alarm("h fvu", 2, 130, 0.6, 0.2), Alarm("x{y=1}, z", 1, 140, 1.0, 2.0)]
    raising.is_over("h fvu")
    assert [one.is_over for one in seen] == [True, False]
    raising.raise_one("h fvu", 150, 0.6, 0.2)
    assert [one.is_over for one in seen] == [False, False]
    assert repr(seen) == "<4 alarms: h fvu at step 150, x{y=1}, z at step 140>"


def test_alarms_of_several_sinks_add_up_and_survive_the_page(page):
    for name in ("alarm-0", "alarm-1"):
        AlarmsOnPage(page.slot(name)).raise_one(name, 1, 0.0, 0.0)
    seen = Alarms(page)
    seen.keep()
    AlarmsOnPage(page.slot("alarm-0")).raise_one("late", 2, 0.0, 0.0)
    assert seen.count == 2
    assert [one.watcher for one in seen] == ["alarm-0", "alarm-1"]


def test_without_a_sink_there_are_none(page):
    assert Alarms(page).count == Alarms().count == 0
    assert recording_until(page) == []


def test_a_restarted_worker_goes_on_counting(page):
    AlarmsOnPage(page.slot("alarm-0")).raise_one("a", 1, 0.0, 0.0)
    again = AlarmsOnPage(page.slot("alarm-0"))
    again.watch("a")
    again.raise_one("a", 2, 0.0, 0.0)
    assert list(Alarms(page)) == [Alarm("a", 2, 2, 0.0, 0.0)]
