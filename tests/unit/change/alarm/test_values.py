"""What watchers saw, kept for a later run."""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.change.alarm.values import EVERY, Baseline, ValuesFile


def test_a_baseline_gives_what_was_kept_by_host_step(tmp_path):
    (tmp_path / "alarm").mkdir()
    kept = ValuesFile(tmp_path / "alarm" / "alarm-0-0.0.values.jsonl")
    kept.watch("h fvu")
    for interval in range(2 * EVERY):
        kept.add(10 * interval, np.array([float(interval)]))
    kept.watch("other, with {odd} name")
    kept.add(1000, np.array([np.nan, 5.0]))
    kept.flush()
    kept.close()
    baseline = Baseline.read(tmp_path)
    for line in range(2):  # means of steps and of values
        middle = EVERY * line + (EVERY - 1) / 2
        assert baseline.at("h fvu", int(10 * middle)) == pytest.approx(middle)
    assert baseline.at("h fvu", 10 * EVERY - 5) == pytest.approx(EVERY - 0.5)
    second = EVERY + (EVERY - 1) / 2
    assert baseline.at("h fvu", 10**9) == pytest.approx(second)
    assert baseline.at("other, with {odd} name", 0) == 5.0
    assert baseline.at("nobody", 7) == 0.0
    assert "nobody" not in baseline


def test_lines_that_cannot_be_read_are_passed_over(tmp_path):
    (tmp_path / "alarm").mkdir()
    lines = ['{"schema": "x"}', '{"watcher": "a"}', "[5, 1.5]", "[true, 3]", '["x", 1]', "nonsense"]
    text = "\n".join([*lines, '[6, "1"]', "[7"])
    (tmp_path / "alarm" / "alarm-0-0.0.values.jsonl").write_text(text)
    assert Baseline.read(tmp_path).at("a", 100) == 1.5


def test_a_restarted_worker_numbers_its_watchers_anew(tmp_path):
    (tmp_path / "alarm").mkdir()
    for incarnation, name in ((0, "a"), (1, "b")):
        kept = ValuesFile(tmp_path / "alarm" / f"alarm-0-0.{incarnation}.values.jsonl")
        kept.watch(name)
        kept.add(3, np.array([float(incarnation)]))
        kept.flush()
        kept.close()
    baseline = Baseline.read(tmp_path)
    assert [baseline.at(name, 3) for name in "ab"] == [0.0, 1.0]
