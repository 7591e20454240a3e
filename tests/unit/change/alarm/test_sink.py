"""The sink as a worker runs it: values in, alarms out, and what is written of them."""

from __future__ import annotations

import dataclasses
import json
import runpy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save

from asys_bench.change.alarm.options import AlarmOptions
from asys_bench.change.alarm.sink import AlarmWorker
from asys_bench.contracts.stats import StatsPage
from asys_bench.monitors.alarm_page import Alarms
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling

HERE = Path(__file__).parent
CONTEXT_OF = runpy.run_path(str(HERE / "context.py"))["context_of"]
RIG = runpy.run_path(str(HERE.parents[1] / "sinks" / "archive" / "conftest.py"))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    made = tmp_path / "known"
    made.mkdir()
    sae = build_sae(SAEConfig(d_sae=16, k=3), 5)
    save_sae(made, sae, InputScaling.identity(5), {"hook_name": "policy.mlp"})
    return made


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("asys_bench.change.alarm.sink.time.monotonic", lambda: self.now)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(watch=[...], ...) -> (worker, page, clock)"""
    pages, workers, clock = [], [], Clock(monkeypatch)

    def make(run_dir=tmp_path, **options):
        page = StatsPage.create(["host", "alarm-0", "trainer-0"])
        page.slot("host").counter("host_steps").set(77)
        options = {"interval_s": 1.0, "false_alarms_per_day": 50, "after_s": 20} | options
        worker = AlarmWorker(AlarmOptions.model_validate(options))
        worker.open(CONTEXT_OF(page.slot("alarm-0"), run_dir, page=page))
        pages.append(page)
        workers.append(worker)
        return worker, page, clock

    yield make
    for page in pages:
        page.close()


def intervals(worker, page, clock, values):
    """One value of the trainer's FVU for each interval."""
    gauge = page.slot("trainer-0").gauge("sae_fvu", hook="h")
    for value in values:
        gauge.set(value)
        clock.now += 1.01
        worker.idle()


def test_a_metric_that_jumps_raises_one_alarm_and_everything_is_said_of_it(start, tmp_path, caplog):
    worker, page, clock = start(watch=[{"metric": "sae_fvu", "side": "up"}])
    seen = Alarms(page)
    clean = 0.2 + 0.01 * np.random.default_rng(0).standard_normal(400)
    intervals(worker, page, clock, clean)
    assert not seen
    intervals(worker, page, clock, clean[:12] + 0.2)
    assert seen.count == 1  # the watcher is quiet for `after_s` intervals
    (alarm,) = seen
    assert alarm.watcher == "trainer-0 sae_fvu{hook=h}"
    assert alarm.step == 77
    assert alarm.value == pytest.approx(0.4, abs=0.05)
    assert alarm.expected == pytest.approx(0.2, abs=0.12)
    assert "sae_fvu{hook=h} went up at step 77" in caplog.text
    (document,) = map(json.loads, (tmp_path / "alarm" / "alarms.jsonl").read_text().splitlines())
    assert document["watcher"] == alarm.watcher
    assert document["number"] == 1
    assert document["up"] is True
    assert document["log10_e"] >= document["log10_threshold"]
    assert document["watchers"] == 1
    assert page.slot("alarm-0").counter("alarm_recording_until_ns").value > time.monotonic_ns()
    worker.close()
    assert page.slot("alarm-0").counter("alarm_recording_until_ns").value == 0
    written = json.loads((tmp_path / "alarm" / "alarm-0-0.0.json").read_text())
    assert written["alarms"] == 1
    (watched,) = written["watchers"]
    assert 0 < watched["finds"][0]["shift"] < 1


def test_rows_that_spread_apart_raise_an_alarm_without_an_sae(start):
    watch = [{"spread": True, "side": "up", "hooks": "policy.*"}]
    worker, page, clock = start(watch=watch, false_alarms_per_day=5000)
    draw = torch.Generator().manual_seed(0)
    for interval in range(250):
        rows = torch.randn(32, 5, generator=draw) * (1.0 if interval < 220 else 3.0)
        with RIG["FakeLease"]([RIG["packet"](rows, 0)]) as lease:
            worker.consume(lease)
        clock.now += 1.01
        worker.idle()
        assert not (interval < 220 and Alarms(page))
    assert [alarm.watcher for alarm in Alarms(page)] == ["policy.mlp spread"]
    worker.close()


def test_when_values_are_back_the_alarm_is_over(start, tmp_path, caplog):
    worker, page, clock = start(watch=[{"metric": "sae_fvu", "side": "up"}], after_s=500)
    random = np.random.default_rng(0)
    clean = 0.2 + 0.01 * random.standard_normal(400)
    intervals(worker, page, clock, clean[:250])
    intervals(worker, page, clock, clean[250:290] + 0.2)
    (alarm,) = Alarms(page)
    assert not alarm.is_over
    intervals(worker, page, clock, clean[290:350])
    (alarm,) = Alarms(page)
    assert alarm.is_over
    assert "is back at step 77 to what it was before alarm 1" in caplog.text
    intervals(worker, page, clock, clean[350:390] + 0.2)
    (alarm,) = Alarms(page)
    assert (alarm.count, alarm.is_over) == (2, False), "quiet no longer"
    worker.close()
    lines = (tmp_path / "alarm" / "alarms.jsonl").read_text().splitlines()
    schemas = [(one["schema"], one["number"]) for one in map(json.loads, lines)]
    assert schemas == [("asys.alarm/1", 1), ("asys.alarm_over/1", 1), ("asys.alarm/1", 2)]


def test_rows_in_which_a_known_feature_is_suddenly_frequent_raise_an_alarm(start, folder, tmp_path):
    worker, page, clock = start(
        watch=[{"sae": str(folder), "features": [1], "hooks": "policy.*"}], rows=64
    )
    random = torch.Generator().manual_seed(1)
    for seq in range(130):
        rows = torch.randn(64, 5, generator=random)
        if seq >= 120:
            rows = rows * torch.tensor([1, 1, 30.0, 1, 1])
        with RIG["FakeLease"](
            [RIG["packet"](rows, seq), RIG["packet"](rows, seq, hook=2)]
        ) as lease:
            worker.consume(lease)
        clock.now += 1.01
        worker.idle()
    assert {one.watcher for one in Alarms(page)} == {"policy.mlp feature 1"}
    metrics = page.slot("alarm-0").metrics()
    assert metrics["alarm_watchers"].value == 2
    assert metrics["alarm_latency_ns"].snapshot().count == sum(one.count for one in Alarms(page))
    worker.close()


def test_a_baseline_takes_away_what_both_runs_learn(start, tmp_path):
    """A drop at one step is no news where the clean run had it; the same drop elsewhere is."""
    random = np.random.default_rng(2)

    def curve():
        drop = np.clip((np.arange(180) - 140) / 20, 0, 1)
        return 0.5 - 0.4 * drop + 0.01 * random.standard_normal(180)

    clean = tmp_path / "clean"
    clean.mkdir()
    found = {}
    for name, baseline in (("clean", None), ("plain", None), ("against", str(clean))):
        run_dir = clean if name == "clean" else tmp_path / name
        run_dir.mkdir(exist_ok=True)
        worker, page, clock = start(run_dir, watch=[{"metric": "sae_fvu"}], baseline=baseline)
        for step, value in enumerate(curve()):
            page.slot("host").counter("host_steps").set(step)
            intervals(worker, page, clock, [value])
        worker.close()
        found[name] = Alarms(page).count
    assert found["plain"] >= 1
    assert found["against"] == 0


def test_watchers_are_limited_and_the_budget_is_theirs_together(start):
    worker, page, clock = start(watch=[{"metric": "x*"}, {"metric": "x1"}])
    for number in range(3):
        page.slot("trainer-0").gauge(f"x{number}").set(1.0)
    clock.now += 3
    worker.idle()
    names = list(worker._names)
    assert names == [f"trainer-0 x{n}" for n in range(3)] + ["trainer-0 x1 (watch 1)"]
    per_day = 86400 / 1.0
    total = sum(4 * alpha * per_day / span for span, alpha in worker._bank.alphas.items())
    assert total == pytest.approx(50)
    worker.close()


def test_intervals_come_no_more_often_than_configured(start):
    """A worker that was stopped for a minute does not make up for sixty values; one that comes a little late
    each time loses none."""
    worker, page, clock = start(watch=[{"metric": "sae_fvu"}])
    clock.now += 60
    for _ in range(5):
        worker.idle()
    assert page.slot("alarm-0").counter("alarm_intervals").value == 1
    for _ in range(40):
        clock.now += 0.3
        worker.idle()
    assert 12 <= page.slot("alarm-0").counter("alarm_intervals").value <= 13
    worker.close()


def test_packets_are_read_between_the_figures_of_what_would_be_found(start, tmp_path, monkeypatch):
    """They take a tenth of the time: all in a row would block the worker for long."""
    worker, page, clock = start(watch=[{"metric": "x*"}])
    for number in range(3):
        page.slot("trainer-0").gauge(f"x{number}").set(1.0)
    power, made = worker._bank.power_over, []

    def slow(number, at):
        clock.now += 1.0
        made.append((number, at))
        return power(number, at)

    monkeypatch.setattr(worker._bank, "power_over", slow)
    document = tmp_path / "alarm" / "alarm-0-0.0.json"
    clock.now += 61  # figures are made after a minute
    for seconds, number in ((0, 1), (8, 1), (2, 2), (10, 3)):
        clock.now += seconds
        worker.idle()
        assert len(made) == number
    assert not document.exists()
    for _ in range(7):
        clock.now += 10
        worker.idle()
    assert made == [(number, at) for number in range(3) for at in range(3)]
    assert [len(one["finds"]) for one in json.loads(document.read_text())["watchers"]] == [3] * 3
    worker.close()


def test_the_probe_of_an_earlier_run_is_watched_and_a_constant_batch_is_not(
    start, tmp_path, caplog
):
    folder = tmp_path / "probes"
    folder.mkdir()
    weight = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
    tensors = {"done.weight": weight, "done.bias": torch.zeros(1)}
    (folder / "policy.mlp.safetensors").write_bytes(save(tensors, {"hook": "policy.mlp"}))
    probe = {
        "label": "done", "kind": "number", "metric": "r2", "classes": None, "value": 0.5, "low": 0.4,
        "high": 0.6, "rows": 9, "held_out_rows": 3, "held_out_blocks": 2, "block": "call", "history": [],
    }  # fmt: skip
    document = {"schema": "asys.probes/1", "hook": "policy.mlp", "features": "activations"}
    (folder / "policy.mlp.json").write_text(json.dumps({**document, "probes": [probe]}))
    watch = [{"probe": str(tmp_path), "label": "done"}, {"probe": str(tmp_path), "label": "gone"}]
    worker, _, clock = start(watch=watch)
    packet = RIG["packet"](torch.full((4, 5), 7.0), 0)
    constant = dataclasses.replace(packet, seq=1, microbatch=2**16 - 1)
    with RIG["FakeLease"]([packet, constant]) as lease:
        worker.consume(lease)
    assert worker._rows_of[1]._left == 124  # four rows of 128, not eight
    clock.now += 1.01
    worker.idle()
    assert worker._names == ["policy.mlp probe done"]
    assert "has no probe of gone" in caplog.text
    worker.close()
    lines = (tmp_path / "alarm" / "alarm-0-0.0.values.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == [77, 7.0]


def test_of_a_full_lease_behind_which_more_waits_the_newest_rows_are_looked_at(start, folder):
    """Else a worker that cannot keep up looks at ever older rows, and finds a change minutes late."""
    worker, page, clock = start(
        watch=[{"sae": str(folder), "features": [0], "hooks": "policy.*"}], rows=64
    )
    worker.max_packets = 8

    def feed(first, count):
        packets = [
            RIG["packet"](
                torch.full((32, 5), float(seq)), seq, timestamp_ns=1000 + seq, host_step=seq
            )
            for seq in range(first, first + count)
        ]
        with RIG["FakeLease"](packets) as lease:
            worker.consume(lease)

    def looked_at():
        (watchers,) = (one for one in worker._rows_of.values() if one is not None)
        return sorted({int(row) for rows in watchers._rows for row in rows[:, 0].tolist()})

    feed(0, 3)
    assert looked_at() == [0, 1], "as many as an interval takes"
    feed(3, 8)
    assert looked_at() == [9, 10]
    assert worker._step == 10
    feed(11, 8)
    assert looked_at() == [17, 18]
    assert page.slot("alarm-0").counter("alarm_full_leases").value == 2
    clock.now += 1.01
    feed(19, 8)
    assert worker._newest_ns == 1026
    worker.close()


def test_an_sae_that_cannot_be_read_leaves_its_hook_unwatched_and_the_worker_lives(
    start, tmp_path, caplog
):
    (tmp_path / "empty").mkdir()
    worker, _, _ = start(watch=[{"sae": str(tmp_path / "empty")}, {"metric": "sae_fvu"}])
    with RIG["FakeLease"]([RIG["packet"](torch.ones(3, 5), 0)]) as lease:
        worker.consume(lease)
    assert "policy.mlp is not watched" in caplog.text
    worker.close()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "one of metric, spread, sae and probe"),
        ({"metric": "a", "sae": "b"}, "one of metric, spread, sae and probe"),
        ({"probe": "a"}, "probe and label go together"),
        ({"metric": "a", "features": [1]}, "features are those of a sae"),
        ({"sae": "a", "features": [-1]}, "features count from 0"),
        ({"metric": "a", "side": "left"}, "up"),
    ],
)
def test_entries_that_make_no_sense_are_refused(entry, said):
    with pytest.raises(ValidationError, match=said):
        AlarmOptions(watch=[entry])


def test_what_cannot_work_is_said_when_the_configuration_loads(tmp_path):
    options = AlarmOptions(
        watch=[{"sae": str(tmp_path / "gone")}, {"probe": str(tmp_path), "label": "done"}],
        baseline=str(tmp_path),
        webhook="https:///path",
    )
    paths = [one.path for one in options.misfits(2, ["*"])]
    assert paths == [
        ("workers",),
        ("options", "watch", 0, "sae"),
        ("options", "watch", 1, "probe"),
        ("options", "baseline"),
        ("options", "webhook"),
    ]
    assert not list(AlarmOptions(watch=[{"metric": "sae_fvu"}]).misfits(1, ["*"]))
