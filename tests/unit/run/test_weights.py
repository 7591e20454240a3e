"""A host that trains leaves its weights, whole or not at all, and notices nothing of it."""

from __future__ import annotations

import json
import time

import pytest

from asys_bench.config import MasterConfig, load_config
from asys_bench.contracts.host import BaseHost, HostResult
from asys_bench.run.preflight import preflight
from asys_bench.run.weights import KeptWeights, forget_after, host_clock, live_interval_s
from asys_bench.rundir.evaluation import kept_weights
from asys_bench.sae.checkpoint.checkpoint_store import check_seal


class Host(BaseHost):
    saved = 0

    def build(self):
        return None

    def run(self, clock):
        return HostResult(0, 0.0)

    def save_weights(self, folder):
        self.saved += 1
        (folder / "model.safetensors").write_bytes(b"weights")


class Clock:
    """As much of a StepClock as is asked for."""

    host_step = weights_version = 0
    should_stop = False

    def step(self, n=1):
        self.host_step += n

    def weights_updated(self):
        self.weights_version += 1

    def report(self, name, value):
        self.told = name, value

    def label(self, **labels):
        self.labels = labels


def folders(run_dir):
    return sorted(path.name for path in (run_dir / "host").iterdir())


def test_the_newest_two_stay_and_say_when_they_were_kept(tmp_path):
    kept = KeptWeights(Host(), tmp_path)
    for step in (5, 90, 1000):
        kept.keep(step, step * 2)
    kept.keep(1000, 2000)
    assert folders(tmp_path) == ["latest", "step_000000090", "step_000001000"]
    about = json.loads((tmp_path / "host/step_000001000/weights.json").read_text())
    assert (about["host_step"], about["weights_version"]) == (1000, 2000)
    assert 0 <= time.time_ns() - about["unix_ns"] < 60e9
    assert (tmp_path / "host").stat().st_mode & 0o777 == 0o700
    assert check_seal(tmp_path / "host/latest")
    forget_after(tmp_path, 500)
    assert folders(tmp_path) == ["latest", "step_000000090"]
    assert (tmp_path / "host/latest").resolve().name == "step_000000090"


def test_weights_of_a_version_before_checksums_are_found_where_there_are_no_others(tmp_path):
    for step in (9, 1_000_000_000):
        old = tmp_path / "host" / f"weights_{step:09d}"
        old.mkdir(parents=True)
        (old / "weights.json").write_text(json.dumps({"host_step": step}))
    (tmp_path / "host" / "weights_2000000000").mkdir()  # torn
    found = kept_weights(tmp_path)
    assert found.folder.name == "weights_1000000000"
    KeptWeights(Host(), tmp_path).keep(5, 5)
    assert kept_weights(tmp_path).folder.name == "step_000000005"


def test_a_failure_is_said_once_raises_nothing_and_leaves_nothing(tmp_path, caplog):
    class Full(Host):
        def save_weights(self, folder):
            super().save_weights(folder)
            raise OSError(28, "No space left on device")

    host = Full()
    kept = KeptWeights(host, tmp_path)
    kept.keep(1, 1)
    kept.keep(2, 2)
    assert folders(tmp_path) == []
    assert host.saved == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "No space left" in caplog.text


def test_a_clock_keeps_weights_at_its_first_step_and_when_they_are_due(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("asys_bench.run.weights.time.monotonic", lambda: now[0])
    host, inner = Host(), Clock()
    clock = host_clock(inner, KeptWeights(host, tmp_path), 10.0)
    for second in range(25):
        now[0] = 100.0 + second
        clock.weights_updated()
        clock.step(8)
    assert host.saved == 3, "at 0, 10 and 20 seconds"
    assert (inner.host_step, inner.weights_version) == (200, 25)
    clock.report("loss", 1.5)
    assert inner.told == ("loss", 1.5)
    clock.label(reward=2.0)
    assert inner.labels == {"reward": 2.0}
    inner.should_stop = True
    assert clock.should_stop is True


def test_without_a_wish_the_host_has_its_own_clock(tmp_path):
    clock = Clock()
    assert host_clock(clock, KeptWeights(Host(), tmp_path), None) is clock
    assert host_clock(clock, None, 10.0) is clock


LIVE = ["sinks.trainer.options.evaluate={every: 3}",
        "sinks.trainer.options.sae.checkpoint_interval_s=20"]  # fmt: skip


def test_weights_are_wanted_as_often_as_an_sae_is_evaluated():
    assert live_interval_s(load_config("demo").config) is None
    assert live_interval_s(load_config("demo", LIVE).config) == 60.0


def test_a_host_whose_model_nobody_else_can_make_is_not_evaluated_live():
    loaded = load_config("demo", [*LIVE, "host.kind=synthetic"])
    assert isinstance(loaded.config, MasterConfig)
    (problem,) = [one for one in preflight(loaded) if "evaluate" in one.path]
    assert "known to the host alone" in problem.message
    assert preflight(load_config("demo", LIVE)) == []


@pytest.mark.parametrize(("kind", "trains"), [("train", True), ("encode", False)])
def test_a_text_host_trains_when_its_task_says_so(kind, trains):
    from asys_bench.hosts.transformers import TransformersOptions

    assert TransformersOptions(task=kind).trains is trains
