"""Which rows and labels a probe reads: decided by the call."""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.change.probe import gate as gate_module
from asys_bench.change.probe.gate import SMALL_ROWS, STRATA, Gate, may_be_in
from asys_bench.contracts.coin import coin_key, toss


def calls(count=4000):
    key = coin_key(0, 0, "probe")
    return [toss(key, step, 0, 0, 0) for step in range(count)]


@pytest.mark.parametrize("rows", [8, SMALL_ROWS, SMALL_ROWS + 1, 256])
@pytest.mark.parametrize("limit", [1.0, 0.3, 0.02])
def test_rows_are_let_in_as_often_as_the_limit_says_and_evenly_below_it(rows, limit):
    gate, random = Gate(1000), np.random.default_rng(0)
    gate.want(limit)
    drawn = [gate.draws(call, rows, random) for call in calls()]
    taken = [draw_N for draw_N in drawn if draw_N is not None]
    in_N = np.concatenate(taken)
    in_N = in_N[in_N < limit]
    share = len(in_N) / (rows * len(drawn))
    assert share == pytest.approx(limit, abs=0.2 * limit + 0.01)
    assert in_N.mean() == pytest.approx(limit / 2, rel=0.15)
    read = len(taken) / len(drawn)
    expected = limit if rows <= SMALL_ROWS else np.ceil(limit * STRATA) / STRATA
    assert read == pytest.approx(expected, abs=0.02), "packets that are read"


def test_rows_of_a_small_packet_are_taken_together_and_large_ones_in_part():
    gate, random = Gate(1000), np.random.default_rng(0)
    gate.want(0.01)
    assert gate.draws(0.009, 16, random).tolist() == [0.009] * 16
    assert gate.draws(0.011, 16, random) is None
    draw_N = gate.draws(0.011, 256, random)
    assert 0 <= draw_N.min() < draw_N.max() < 1 / STRATA
    assert gate.draws(1 / STRATA, 256, random) is None


def test_labels_of_every_call_that_rows_are_taken_of_are_read():
    gate, random = Gate(1000), np.random.default_rng(0)
    for limit in (1.0, 0.4, 0.05, 0.001):
        gate.want(limit)
        for rows in (8, 256):
            taken = [call for call in calls(1000) if gate.draws(call, rows, random) is not None]
            assert all(may_be_in(call, limit / 1.9) for call in taken), "it moved since"
        read = np.mean([may_be_in(call, limit) for call in calls()])
        assert read <= min(1.0, 2 * limit + 1.5 / STRATA)


def test_a_full_window_slows_the_pace_at_which_rows_come(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: now[0])
    gate = Gate(6000)
    for _ in range(30):
        now[0] += 0.1
        gate.count(400, 0.5, is_full=False)
    assert gate.pace == 1.0
    for _ in range(12):
        now[0] += 0.1
        gate.count(400, 0.5, is_full=True)
    assert gate.pace == pytest.approx(6000 / 60 / (4000 * 0.5), rel=0.01)
    gate.want(4.0)
    assert gate.limit == pytest.approx(4 * gate.pace)
