"""A run's figures and curves, live, ended and gone on with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asys_bench.contracts.bus import BusAccount, GroupAccount
from asys_bench.contracts.run_files import METRICS_FILE
from asys_bench.contracts.stats import RunState, SlotField, StatsPage, WorkerState
from asys_bench.eye.curves import Curves
from asys_bench.eye.watch import RunWatch, plain
from asys_bench.monitors.snapshot import publish_account
from asys_bench.system.process import start_time

from ..reports import test_run_report as made
from .conftest import HOOK, run_json


class Bus:
    def account(self) -> BusAccount:
        return BusAccount(100, {"full": 4}, 6400, (GroupAccount("trainer", 90, 0, 0, 0, 6),))


def live_page(folder: Path, steps: int) -> StatsPage:
    """This process as the host of a run."""
    page = StatsPage.create(["host", "trainer-0", "monitor-log"])
    page.run_state = RunState.RUNNING
    host = page.slot("host")
    host.set(SlotField.PID, os.getpid())
    host.set(SlotField.PROCESS_START, start_time(os.getpid()))
    host.state = WorkerState.READY
    host.counter("host_steps").add(steps)
    host.gauge("host_reward_mean").set(20.0)
    host.counter("hook_captured", hook=HOOK).add(100)
    host.counter("hook_failed", hook=HOOK).add(1)
    trainer = page.slot("trainer-0")
    trainer.gauge("sae_fvu", hook=HOOK).set(0.125)
    trainer.gauge("sae_loss", hook=HOOK).set(float("nan"))
    publish_account(page.slot("monitor-log"), Bus())
    run_json(
        folder, [HOOK], host_pid=os.getpid(), host_start=start_time(os.getpid()),
        stats_page=f"/proc/{os.getpid()}/fd/{page.fd}", started_unix_ns=time.time_ns(),
    )  # fmt: skip
    return page


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[RunWatch]:
    watch = RunWatch(tmp_path)
    yield watch
    watch.close()


def test_a_live_run_has_its_figures_and_what_a_person_should_look_into(
    tmp_path: Path, watch: RunWatch
) -> None:
    page = live_page(tmp_path, 1234)
    found = watch.document()
    page.close()
    assert (found["live"], found["state"], found["unit"]) == (True, "running", "env step")
    assert found["host"]["steps"] == 1234
    assert found["host"]["reported"] == {"reward_mean": 20.0}
    (sae,) = found["saes"]
    assert (sae["sae"], sae["fvu"], sae["loss"], sae["l0"]) == (HOOK, 0.125, None, None)
    assert found["bus"] | {"rate": 0, "flow": 0} == {
        "produced": 100, "bytes": 6400, "rate": 0, "flow": 0, "dropped": {"full": 4},
    }  # fmt: skip
    (group,) = found["groups"]
    assert (group["delivered"], group["ready"], group["lost"]) == (90, 6, 0)
    assert found["warnings"] == [f"hook {HOOK}: 1 calls failed"]
    json.dumps(found, allow_nan=False)


def test_a_run_is_followed_through_its_end_and_its_resume(tmp_path: Path, watch: RunWatch) -> None:
    page = live_page(tmp_path, 10)
    assert watch.document()["host"]["steps"] == 10
    page.run_state = RunState.STOPPED
    run_json(tmp_path, [HOOK], result="finished")
    ended = watch.document()
    assert (ended["live"], ended["state"]) == (False, "ended")
    assert "left no summary" in ended["problem"]
    page.close()
    again = live_page(tmp_path, 25)
    found = watch.document()
    assert (found["live"], found["host"]["steps"]) == (True, 25)
    again.close()


def test_a_finished_run_has_the_figures_of_its_summary(whole_run: Path) -> None:
    found = RunWatch(whole_run).document()
    assert (found["live"], found["state"], found["problem"]) == (False, "finished", "")
    assert found["host"]["reported"] == {"reward_mean": 431.0}
    assert found["bus"] == {"produced": 300, "bytes": 1000, "dropped": {"full": 10}}
    assert [group["off"] for group in found["groups"]] == [0]
    assert found["balanced"] is True
    json.dumps(found, allow_nan=False)


run_dir, whole_run = made.run_dir, made.whole_run


def test_alarms_are_the_newest_and_their_text_is_text(tmp_path: Path, watch: RunWatch) -> None:
    run_json(tmp_path, [HOOK])
    (tmp_path / "alarm").mkdir()
    lines = [
        json.dumps({"schema": "asys.alarm/1", "text": f"<b>{n}</b>", "host_step": n})
        for n in range(60)
    ]
    numbered = {"worker": "alarm-0", "attempt": 0, "incarnation": 0, "number": 7}
    lines += [
        json.dumps({"schema": "asys.alarm/1", "text": "up", "host_step": 60, **numbered}),
        json.dumps({"schema": "asys.alarm_over/1", "text": "back", "host_step": 65, **numbered}),
        json.dumps({"schema": "asys.alarm_over/1", "host_step": 66, **numbered, "number": [8]}),
    ]
    (tmp_path / "alarm" / "alarms.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    found = watch.document()["alarms"]
    assert len(found) == 50
    assert found[-2] == {"step": 59, "text": "<b>59</b>"}
    assert found[-1] == {"step": 60, "text": "up; over at step 65"}


def test_a_folder_that_is_no_run_any_more_says_so(tmp_path: Path, watch: RunWatch) -> None:
    assert "run.json" in watch.document()["problem"]
    (tmp_path / "run.json").write_text("[]")
    assert "asys.run/1" in watch.document()["problem"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(1.23456, 1.235), (float("nan"), None), (float("inf"), None), (None, None), (7, 7)],
)
def test_numbers_are_what_json_can_say(value: float | None, told: float | None) -> None:
    assert plain(value) == told


# ---- curves


def test_curves_are_read_on_as_the_file_grows_and_anew_when_it_is_replaced(tmp_path: Path) -> None:
    made.metrics(tmp_path).close()
    whole = (tmp_path / METRICS_FILE).read_bytes()
    half = whole.index(b"\n3.") + 7
    (tmp_path / METRICS_FILE).write_bytes(whole[:half])
    curves = Curves(tmp_path)
    curves.read_on()
    fvu = {chart["title"]: chart for chart in curves.charts()}[
        "Fraction of variance unexplained, held out"
    ]
    assert fvu["lines"] == [{"name": HOOK, "x": [0.0, 1.0, 2.0], "y": [1.0, 0.5, 0.3333]}]
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(whole[half:])
    curves.read_on()
    fvu = {chart["title"]: chart for chart in curves.charts()}[
        "Fraction of variance unexplained, held out"
    ]
    assert fvu["lines"][0]["y"] == [1.0, 0.5, 0.3333, 0.25, 0.2, 0.1667]
    (reward,) = curves.over_steps()
    assert reward["lines"][0]["x"] == [100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    assert reward["lines"][0]["y"] == [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    (tmp_path / "new").write_bytes(whole[:half])
    os.replace(tmp_path / "new", tmp_path / METRICS_FILE)
    curves.read_on()
    assert len(curves.over_steps()[0]["lines"][0]["y"]) == 3


def test_curves_of_no_file_and_of_a_damaged_one_are_none(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.read_on()
    assert curves.charts() == []
    (tmp_path / METRICS_FILE).write_bytes(b"\xff\x00,\n" * 100 + b'"' * 200_000)
    curves.read_on()
    assert curves.charts() == []
