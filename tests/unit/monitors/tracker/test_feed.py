"""A feed to a tracker that refuses, hangs or is not installed: nobody waits, and what can be kept is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from asys_bench.contracts.monitor import MonitorContext
from asys_bench.contracts.stats import RunState
from asys_bench.monitors.tracker import feed as feed_module
from asys_bench.monitors.tracker import plugin as plugin_module
from asys_bench.monitors.tracker.feed import Feed
from asys_bench.monitors.tracker.mlflow_runs import MLflowOptions, metric_key
from asys_bench.monitors.tracker.plugin import TrackerMonitor, TrackerOptions
from asys_bench.monitors.tracker.tracker import (
    About,
    HostRun,
    Point,
    TrackedRun,
    Tracker,
    own_id,
    read_tracked,
    write_tracked,
)

ABOUT = About("a-run", own_id("a-run", 1), "step", {})


class Told(Tracker):
    """Keeps what it is told; fails or waits as it is asked to."""

    service = "told"

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.failures: list[Exception] = []
        self.finished = False
        self.gate = threading.Event()
        self.gate.set()

    def open(self, about: About) -> TrackedRun:
        self._go()
        return TrackedRun(self.service, about.own_id, "p")

    def log(self, points: Sequence[Point]) -> None:
        self._go()
        self.points += points

    def attach(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        self._go()
        self.finished = True

    def _go(self) -> None:
        self.gate.wait(60)
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "LOOK_S", 0.01)
    monkeypatch.setattr(feed_module.Backoff, "next_s", lambda self: 0.02)
    monkeypatch.setattr(plugin_module, "REFUSED_S", 0.2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def points(count: int) -> list[Point]:
    return [Point(step, 1.0 + step, {"x": 0.5}) for step in range(count)]


def test_points_arrive_once_and_in_order_whatever_fails_in_between() -> None:
    told, opened = Told(), []
    told.failures = [
        OSError("no network"),
        ConnectionError("reset"),
        ValueError("bad"),
        OSError("again"),
    ]
    feed = Feed(told, ABOUT, opened.append)
    feed.start()
    for point in points(20):
        feed.put(point)
    feed.finish()
    until(lambda: feed.done)
    assert told.points == points(20)
    assert told.finished
    assert (feed.points, feed.dropped, feed.errors) == (20, 0, 4)
    assert opened == [TrackedRun("told", ABOUT.own_id, "p")]


def test_a_tracker_that_refuses_twice_in_a_row_is_opened_anew_and_then_not_at_every_try() -> None:
    """As wandb must be, whose own process was killed."""

    class Dying(Told):
        def __init__(self) -> None:
            super().__init__()
            self.opens: list[str] = []

        def open(self, about: About) -> TrackedRun:
            self.opens.append(about.known.id if about.known is not None else "")
            return TrackedRun(self.service, f"run-{len(self.opens)}", "p")

    told, opened = Dying(), []
    told.failures = [ConnectionError("gone")] * 5
    feed = Feed(told, ABOUT, opened.append)
    feed.start()
    for point in points(3):
        feed.put(point)
    feed.finish()
    until(lambda: feed.done)
    assert told.points == points(3)
    assert told.opens == ["", "run-1", "run-2"], "with two refusals between"
    assert [one.id for one in opened] == ["run-1", "run-2", "run-3"]
    assert feed.errors == 5


def test_a_tracker_that_hangs_costs_the_oldest_points_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "MOST_WAITING", 5)
    told = Told()
    told.gate.clear()
    feed = Feed(told, ABOUT, lambda _: None)
    feed.start()
    for point in points(8):
        feed.put(point)
    assert (feed.waiting, feed.dropped) == (5, 3)
    assert not feed.done
    told.gate.set()
    feed.finish()
    until(lambda: feed.done)
    assert told.points == points(8)[3:]


def test_a_package_that_is_missing_is_said_once_and_not_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    told.failures = [ImportError("No module named 'told'")]
    feed = Feed(told, ABOUT, lambda _: None)
    feed.start()
    until(lambda: feed.done)
    feed.put(points(1)[0])
    assert feed.waiting == 0
    assert "pip install 'asys-i[trackers]'" in caplog.text


def run_json(folder: Path, **more: object) -> None:
    document = {"schema": "asys.run/1", "run_id": "a-run", "hooks": [], "host_pid": 1, **more}
    (folder / "run.json").write_text(json.dumps(document))


def test_the_monitor_counts_and_leaves_in_time_when_a_tracker_refuses(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    told.failures = [OSError("refused")] * 10_000
    monkeypatch.setattr(TrackerOptions, "trackers", lambda _: iter([told]))
    run_json(tmp_path)
    slot = run.page.slot("monitor-log")
    monitor = TrackerMonitor(TrackerOptions.model_validate({"mlflow": {}}))
    monitor.open(
        MonitorContext(tmp_path, "a-run", run.page, run.account, {}, "step", False, slot=slot)
    )
    began = time.monotonic()
    run.host_steps(10)
    monitor.tick(RunState.RUNNING)
    assert time.monotonic() - began < 20
    monitor.tick(RunState.STOPPED)
    monitor.close()
    assert time.monotonic() - began < 40
    metrics = slot.metrics()
    assert metrics["tracker_waiting_points{tracker=told}"].value == 2
    assert metrics["tracker_points{tracker=told}"].value == 0
    assert metrics["tracker_errors{tracker=told}"].value > 0
    told.failures.clear()


def test_which_run_it_is_is_read_back_and_strangers_files_are_not(tmp_path: Path) -> None:
    tracked = TrackedRun("wandb", "asys-1", "p", "me", "https://x")
    write_tracked(tmp_path, tracked)
    assert read_tracked(tmp_path, "wandb") == tracked
    assert read_tracked(tmp_path, "mlflow") is None
    (tmp_path / "trackers" / "mlflow.json").write_text(
        (tmp_path / "trackers" / "wandb.json").read_text()
    )
    assert read_tracked(tmp_path, "mlflow") is None
    for text in (
        "[]",
        "{",
        '{"schema": "asys.tracked/1"}',
        '{"schema": "asys.tracked/1", "id": 3}',
    ):
        (tmp_path / "trackers" / "wandb.json").write_text(text)
        assert read_tracked(tmp_path, "wandb") is None


def test_the_hosts_run_is_read_from_run_json() -> None:
    plain = {"id": "a", "entity": "", "project": "p", "group": "", "url": "", "shared": False}
    found = HostRun.from_plain(plain)
    assert found is not None
    assert found.link == "p/a"
    assert HostRun.from_plain(plain | {"url": "u"}) == HostRun("a", "", "p", "", "u", False)
    for wrong in (None, [], {}, plain | {"id": 3}, plain | {"shared": 1}, plain | {"more": ""}):
        assert HostRun.from_plain(wrong) is None


@pytest.mark.parametrize(
    "name",
    [
        "sae_loss/layers.3",
        "sae_loss/a->b",
        "sae_loss/x#wide [1]",
        "sae_loss/",
        "sae_loss/..",
        "/a",
        "a//b",
        "a" * 400,
    ],
)
def test_mlflow_takes_every_name(name: str) -> None:
    import posixpath
    import re

    key = metric_key(name)
    assert re.fullmatch(r"[/\w.\- :]*", key)
    assert posixpath.normpath(key) == key
    assert not key.startswith(("/", ".."))
    assert len(key) <= 250
    assert metric_key("sae_loss/layers.3") == "sae_loss/layers.3"


def test_names_that_would_be_alike_are_told_apart() -> None:
    assert metric_key("sae_loss/a#b") != metric_key("sae_loss/a[b") != metric_key("sae_loss/a_b")


def test_options_name_a_tracker_and_hold_no_credentials() -> None:
    with pytest.raises(ValueError, match="names no tracker"):
        TrackerOptions()
    with pytest.raises(ValueError, match="holds credentials"):
        MLflowOptions(tracking_uri="http://me:pw@host")
    assert TrackerOptions.model_validate({"trackio": {}}).trackio is not None


def test_a_run_has_one_id_and_two_of_one_name_have_two() -> None:
    assert own_id("r", 1) == own_id("r", 1) != own_id("r", 2)
