"""SAEs that are too slow for their run: said, given time for a step, and not begun when none is left."""

import time

import pytest

from asys_bench.contracts.stats import SlotField
from asys_bench.sae.config import SAEConfig
from asys_bench.sinks.sae import pace
from asys_bench.sinks.sae.pace import Pace


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(pace, "step_seconds", lambda config, d_in: 7.0)


def test_a_slow_step_is_forecast_with_rows_per_second_and_the_setting_for_the_drain(slow, caplog):
    made = Pace("a", SAEConfig(dtype="float32"))
    made.forecast(4096)
    made.forecast(4096)
    (record,) = caplog.records
    assert "a: a step of 1024 rows takes about 14 s here (d_in 4096, d_sae 32768)" in record.message
    assert "about 73 rows/s" in record.message
    assert "run.drain_timeout_s of 125 or more" in record.message
    assert made.promise_s == 56.0


def test_a_quick_step_is_neither_said_nor_given_more_time(monkeypatch, caplog):
    monkeypatch.setattr(pace, "step_seconds", lambda config, d_in: 0.01)
    made = Pace("a", SAEConfig())
    made.forecast(64)
    assert made.promise_s == 0.0
    assert not caplog.records


def test_what_never_trained_or_cannot_keep_up_is_said_at_the_end(slow, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    made = Pace("a", SAEConfig(batch_rows=64))
    assert made.final_words(0, 0, 1) is None
    made.forecast(64)
    assert made.final_words(0, 12, 1) == (
        "never trained: 12 rows came, and a step takes 64 (sae.batch_rows)"
    )
    assert made.final_words(0, 640, 1).startswith("never finished a step: one takes about 14.0 s")
    now[0] += 100
    made.stepped(4, 16.0)
    said = made.final_words(4, 100_000, 2)
    assert said.startswith(
        "this trainer makes 8 rows/s, the host 1000: most rows are never trained"
    )
    assert made.final_words(4, 500, 2) is None


def test_a_worker_promises_silence_for_a_slow_step_and_begins_none_without_time(rig, slow, caplog):
    worker = rig.start()
    rig.feed(worker, *(rig.packet(rig.rows(seq), seq) for seq in range(20)))
    worker.idle()
    beat_ns = rig.page.slot("trainer-0").get(SlotField.HEARTBEAT_NS)
    steps = rig.figure("sae_steps", "layer.0")
    assert steps > 0
    assert beat_ns > 0
    next(iter(worker._trainings.values())).pace.step_s = 14.0
    rig.feed(worker, *(rig.packet(rig.rows(seq), seq) for seq in range(20, 40)))
    rig.left_s = 8.0
    worker.close()
    assert rig.figure("sae_steps", "layer.0") == steps
    assert rig.figure("sae_checkpoints", "layer.0") == 1


def test_a_checkpoint_that_outlasts_the_time_left_is_not_begun(rig, slow, caplog):
    worker = rig.start()
    rig.feed(worker, *(rig.packet(rig.rows(seq), seq) for seq in range(20)))
    worker.idle()
    training = next(iter(worker._trainings.values()))
    training.pace.step_s, training.pace.save_s = 14.0, 30.0
    rig.left_s = 8.0
    worker.close()
    assert "no last checkpoint: it takes about 30 s and 8.0 s are left" in caplog.text
    assert not (rig.run_dir / "sae" / "layer.0").exists()


def test_building_a_large_sae_is_covered_by_a_promise(rig, slow):
    worker = rig.start()
    before_ns = time.monotonic_ns()
    rig.feed(worker, rig.packet(rig.rows(0), 0))
    beat_ns = rig.page.slot("trainer-0").get(SlotField.HEARTBEAT_NS)
    assert beat_ns >= before_ns + 56e9
