"""One budget of false alarms for all watchers, and what they find under it."""

from __future__ import annotations

import copy
import itertools
import os
import runpy
from pathlib import Path

import numpy as np
import pytest

from asys_bench.change.alarm.bank import DAY_S, DetectorBank

SOAK = os.environ.get("ASYS_SOAK") == "1"
STREAMS = runpy.run_path(str(Path(__file__).parent / "streams.py"))


def bank_of(watchers, run_length, side="both", **more):
    """Each watcher has a false alarm per `run_length` values on average, or fewer."""
    bank = DetectorBank(false_alarms_per_day=watchers * DAY_S / run_length, interval_s=1.0, **more)
    for _ in range(watchers):
        bank.add(side)
    return bank


def test_the_budget_is_split_over_watchers_spans_and_cadence():
    bank = DetectorBank(false_alarms_per_day=2.0, interval_s=0.5)
    for _ in range(5):
        bank.add("both")
    values_per_day = DAY_S / 0.5
    total = sum(5 * alpha * values_per_day / span for span, alpha in bank.alphas.items())
    assert total == pytest.approx(2.0)
    bank.add("up")
    total = sum(6 * alpha * values_per_day / span for span, alpha in bank.alphas.items())
    assert total == pytest.approx(2.0)


@pytest.mark.stress
@pytest.mark.parametrize(
    "kind",
    [
        "Cauchy",
        "silent feature",
        *(
            pytest.param(kind, marks=pytest.mark.rest)
            for kind in ("independent", "AR(1) 0.9", "learning", "rare feature", "policy updates")
        ),
    ],
)
def test_false_alarms_stay_within_the_budget(kind):
    """28,800 values with one expected per 400 at most: 72."""
    length = 4500 if SOAK else 450
    values = STREAMS["KINDS"][kind](np.random.default_rng(7), (length, 64))
    bank = bank_of(64, 400)
    alarms = sum(len(bank.update(row)) for row in values)
    assert alarms <= 64 * length / 400


@pytest.mark.parametrize(("side", "found"), [("up", True), ("both", True), ("down", False)])
def test_a_lasting_shift_is_found_at_once_on_the_side_that_is_watched(side, found):
    values = np.random.default_rng(8).standard_normal((520, 1))
    values[500:] += 8
    bank = bank_of(1, 1e6, side)
    findings = [(t, one) for t, row in enumerate(values) for one in bank.update(row)]
    if not found:
        assert findings == []
        return
    at, first = findings[0]
    assert 500 <= at <= 505
    assert first.up
    assert first.value == pytest.approx(8, abs=3.5)
    assert first.log10_e >= first.log10_threshold > 6


def test_a_slow_rise_is_found_over_a_longer_span():
    values = np.random.default_rng(9).standard_normal((900, 1))
    values[600:, 0] += np.minimum(np.arange(300) / 60, 2.0)
    bank = bank_of(1, 1e5)
    findings = [(t, one) for t, row in enumerate(values) for one in bank.update(row)]
    assert findings
    assert findings[0][1].span > 1
    assert 600 < findings[0][0] < 800


@pytest.mark.stress
def test_the_stated_power_is_what_shifted_streams_show():
    random = np.random.default_rng(10)
    clean = random.standard_normal((500, 1))
    bank = bank_of(1, 1e4)
    for row in clean:
        bank.update(row)
    power = bank.power(0, values=12)[0]
    assert power.span == 1
    assert 0 < power.shift < 6
    found, seeds = {}, 400 if SOAK else 20
    for factor in (0.3, 1.3):
        hits = 0
        for seed in range(seeds):
            one = copy.deepcopy(bank)
            one.restart([0])
            shifted = np.random.default_rng(seed).standard_normal((12, 1)) + factor * power.shift
            hits += any(finding.span == 1 for row in shifted for finding in one.update(row))
        found[factor] = hits / seeds
    assert found[1.3] >= 0.75
    assert found[0.3] <= 0.25


def test_without_a_reference_no_power_is_stated():
    bank = bank_of(1, 1e4)
    assert [np.isnan(one.shift) for one in bank.power(0)] == [True, True, True]


def test_a_watcher_without_a_value_waits_and_the_others_go_on():
    values = np.random.default_rng(11).standard_normal((300, 2))
    values[200:, 1] += 8
    both, one = bank_of(2, 1e4), bank_of(2, 1e4)
    gaps = values.copy()
    gaps[::3, 0] = np.nan
    found_both = [(t, f.watcher) for t, row in enumerate(values) for f in both.update(row)]
    found_gaps = [(t, f.watcher) for t, row in enumerate(gaps) for f in one.update(row)]
    assert any(watcher == 1 for _, watcher in found_both)
    assert [t // 20 for t, watcher in found_gaps if watcher == 1][:1] == [10]
    assert one.update(np.array([np.nan, np.nan])) == []


def test_after_an_alarm_a_watcher_starts_again():
    values = np.random.default_rng(12).standard_normal((300, 1))
    values[200:] += 8
    bank = bank_of(1, 1e5)
    times = [t for t, row in enumerate(values) for _ in bank.update(row)]
    assert len(times) >= 1
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(times))


def test_an_ongoing_state_is_one_alarm_and_what_comes_after_it_another():
    values = np.random.default_rng(14).standard_normal((1200, 1))
    values[300:500] += 12 * (np.arange(200)[:, None] // 20 % 2)
    values[900:] += 12
    bank = bank_of(1, 1e5)
    times = [t for t, row in enumerate(values) for _ in bank.update(row)]
    assert len(times) == 2
    assert 320 <= times[0] < 340
    assert 900 <= times[1] < 920


def test_a_level_that_comes_back_ends_the_alarm_and_the_next_change_is_another():
    """A return is no alarm; the second time is found as soon as the first, though its level was there
    before."""
    values = np.random.default_rng(16).standard_normal((1000, 1))
    values[500:620] += 12
    values[760:] += 12
    bank = bank_of(1, 1e5)
    alarms, backs = [], []
    for t, row in enumerate(values):
        alarms += [t for _ in bank.update(row)]
        backs += [t for _ in bank.back]
    assert len(alarms) == 2
    assert 500 <= alarms[0] < 515
    assert 760 <= alarms[1] < 775
    assert len(backs) == 1
    assert 640 <= backs[0] < 670


def test_a_level_that_stays_is_the_usual_one_and_leaving_it_is_an_alarm():
    values = np.random.default_rng(17).standard_normal((2400, 1))
    values[300:1900] += 12
    bank = bank_of(1, 1e5)
    alarms, backs = [], []
    for t, row in enumerate(values):
        alarms += [t for _ in bank.update(row)]
        backs += bank.back
    assert [t // 100 for t in alarms] == [3, 19]
    assert backs == []


def test_a_change_that_is_smaller_than_what_counts_is_none():
    values = 0.1 + 0.0005 * np.random.default_rng(18).standard_normal((700, 2))
    values[500:] += 0.008
    bank = bank_of(1, 1e5)
    bank.add("both", 0.01)
    found = [finding.watcher for row in values for finding in bank.update(row)]
    assert 0 in found
    assert 1 not in found


def test_a_feature_that_wakes_slowly_is_one_state_or_two():
    """Silent for 400 values, then more frequent over 800: five alarms each without states."""
    values = STREAMS["waking"](np.random.default_rng(15), (1200, 16))
    bank = bank_of(16, 1e5)
    alarms = sum(len(bank.update(row)) for row in values)
    assert 8 <= alarms <= 2 * 16


def test_a_watcher_that_joins_later_changes_nothing_for_those_before_but_their_share():
    values = np.random.default_rng(13).standard_normal((200, 2))
    bank = bank_of(1, 100)
    for row in values[:100, :1]:
        bank.update(row)
    before = bank.alphas[1]
    assert bank.add("both") == 1
    assert bank.alphas[1] == pytest.approx(before / 2)
    for row in values[100:]:
        bank.update(row)
    assert np.isfinite(bank.power(0)[0].shift_in_spreads)
