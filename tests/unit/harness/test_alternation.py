"""Observed and unobserved in turns: the order of the blocks, and what their comparison says."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from asys_bench.contracts.scenario import ScenarioError
from asys_bench.harness.scenarios import alternation as blocks
from asys_bench.harness.scenarios.alternation import Alternation


class Hooker:
    def __init__(self):
        self.on = True
        self.turns = []

    def attach(self):
        self.on = True
        self.turns.append("on")

    def detach(self):
        self.on = False
        self.turns.append("off")


def alternation(block_steps, workers_run=False):
    hooker = Hooker()
    return hooker, Alternation(SimpleNamespace(hooker=hooker), block_steps, workers_run=workers_run)


def play(hooker, paired, steps, on_ns, off_ns, drift_ns=0):
    paired.begin()
    for step in range(steps):
        paired.add((on_ns if hooker.on else off_ns) + step * drift_ns)


def test_blocks_come_in_the_order_off_on_on_off_and_the_ratio_is_what_hooks_cost():
    hooker, paired = alternation(4)
    play(hooker, paired, 34, on_ns=1100, off_ns=1000)
    assert hooker.turns == ["off", "on", "on", "off", "off", "on", "on", "off", "off"]
    assert paired.slowdown() == pytest.approx(1.1)
    assert paired.rate() == pytest.approx(1 / 1.1)


def test_workers_run_while_hooks_are_on_and_in_the_end(monkeypatch):
    sent = []
    monkeypatch.setattr(blocks, "signal_workers", lambda session, number: sent.append(number))
    hooker, paired = alternation(2, workers_run=True)
    play(hooker, paired, 8, on_ns=1, off_ns=1)
    paired.end()
    stop, go_on = signal.SIGSTOP, signal.SIGCONT
    assert sent == [stop, go_on, go_on, stop, stop, go_on]
    sent.clear()
    hooker, paired = alternation(2)  # stopped or killed workers are left as they are
    play(hooker, paired, 8, on_ns=1, off_ns=1)
    paired.end()
    assert sent == []


def test_a_drift_of_the_machine_cancels_out():
    hooker, paired = alternation(5)
    play(hooker, paired, 400, on_ns=100_000, off_ns=100_000, drift_ns=20)
    assert paired.slowdown() == pytest.approx(1.0, abs=1e-4)


def test_the_first_step_of_a_block_pays_for_the_change_and_does_not_count():
    _, paired = alternation(3)
    paired.begin()
    for _ in range(8):
        for ns in (10_000_000, 1000, 1000):
            paired.add(ns)
    assert paired.slowdown() == 1.0


def test_the_rate_counts_every_step_of_a_block():
    hooker, paired = alternation(4)
    paired.begin()
    for _ in range(4):
        for ns in (100, 100, 700, 100) if not hooker.on else (100, 150, 800, 200):
            paired.add(ns)
    assert paired.rate() == pytest.approx(1000 / 1250)
    assert (
        8 / 7 < paired.slowdown() < 2.0
    )  # steps at the same place: 1.5, 8 / 7 and 2 times as long


def test_the_tail_compares_the_slow_steps_of_either_side():
    hooker, paired = alternation(51)
    paired.begin()
    for _ in range(8):
        slow = 3000 if hooker.on else 2000
        for ns in (10_000_000, *(49 * [1000]), slow):
            paired.add(ns)
    assert paired.tail() == pytest.approx(1.5)  # one step of fifty: the p99 is among them
    assert paired.slowdown() == 1.0


def test_the_tail_is_of_steps_over_those_of_their_time():
    hooker, paired = alternation(51)
    paired.begin()
    for block in range(8):
        speed = 1 if block < 4 else 3  # the machine becomes slower
        slow = 1500 if hooker.on else 1200
        for ns in (10_000_000, *(49 * [1000 * speed]), slow * speed):
            paired.add(ns)
    assert paired.tail() == pytest.approx(1500 / 1200)


def test_no_whole_pair_is_an_error_and_not_a_result():
    hooker, paired = alternation(10)
    play(hooker, paired, 19, on_ns=1, off_ns=1)
    with pytest.raises(ScenarioError, match="no pair of blocks"):
        paired.slowdown()


def test_it_needs_hooks():
    with pytest.raises(ScenarioError, match="without hooks"):
        Alternation(SimpleNamespace(hooker=None), 4, workers_run=True)
