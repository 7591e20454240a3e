"""Which rows and labels a probe reads: decided by the call."""

from __future__ import annotations

import numpy as np
import pytest

from asys_bench.change.probe import gate as gate_module
from asys_bench.change.probe.gate import MOST_READ, SMALL_ROWS, STRATA, Gate, may_be_in
from asys_bench.contracts.coin import coin_key, toss, tosses


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
            assert all(may_be_in(call, limit / 1.2) for call in taken), "it moved since"
        read = np.mean(may_be_in(np.array(calls()), limit))
        assert read <= min(1.0, 1.25 * limit + 1.5 / STRATA)


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


def test_a_boost_is_as_large_as_an_eighth_of_a_fast_stream_allows(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: now[0])
    gate = Gate(600)
    for _ in range(24):
        now[0] += 0.1
        gate.count(10, 1.0, is_full=True)
    gate.want(1.0, 16.0)
    assert gate.limit == pytest.approx(MOST_READ), "of 100 rows a second a tenth is let in as usual"
    assert gate.reach == pytest.approx(1.25)
    for _ in range(24):
        now[0] += 0.1
        gate.count(2, 1.0, is_full=True)
    assert gate.limit == pytest.approx(0.5), "what is let in as usual is never less"
    for _ in range(24):
        now[0] += 0.1
        gate.count(0, 1.0, is_full=True)
    assert (gate.pace, gate.limit) == (1.0, 16.0), "a slow stream is read whole"


def test_packets_are_chosen_together_as_one_by_one():
    key, random = coin_key(3, 0, "probe"), np.random.default_rng(0)
    tags_4N = random.integers(0, 1 << 40, (4, 500)).astype(np.uint64)
    call_N = tosses(key, *tags_4N)
    assert call_N.tolist() == [toss(key, *tags) for tags in tags_4N.T.tolist()]
    rows_N = random.choice([0, 8, 64, 65, 256], 500)
    gate = Gate(1000)
    for limit in (1.0, 0.3, 0.02):
        gate.want(limit)
        singly = [
            rows > 0 and gate.draws(call, rows, random) is not None
            for call, rows in zip(call_N.tolist(), rows_N.tolist(), strict=True)
        ]
        assert gate.takes(call_N, rows_N).tolist() == singly
