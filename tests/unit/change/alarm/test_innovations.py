"""What is expected of a stream's next value, and what a value adds to it."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import numpy as np
import pytest

from asys_bench.change.alarm.innovations import CLIP, WARM_UP, Predictor

STREAMS = runpy.run_path(str(Path(__file__).parent / "streams.py"))
LONGER = 10 if os.environ.get("ASYS_SOAK") == "1" else 1


def run(values_TN):
    predictor = Predictor()
    predictor.grow(values_TN.shape[1])
    everybody = np.arange(values_TN.shape[1])
    pairs = [predictor.innovations(everybody, values) for values in values_TN]
    return predictor, np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def test_nothing_is_said_while_a_stream_warms_up():
    _, innovations, expected = run(np.random.default_rng(0).standard_normal((WARM_UP + 5, 2)))
    assert np.isnan(innovations[:WARM_UP]).all()
    assert np.isnan(expected[:WARM_UP]).all()
    assert np.isfinite(innovations[WARM_UP:]).all()


@pytest.mark.stress
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_an_autoregressive_stream_is_predicted_nearly_as_well_as_by_its_own_law(share):
    noise = np.random.default_rng(1).standard_normal((800 * LONGER, 32))
    values = STREAMS["autoregressive"](noise, share)
    _, _, expected = run(values)
    left = (values - expected)[300:]
    assert left.std() == pytest.approx(1.0, abs=0.04)  # of white noise with spread 1


def test_a_trend_is_expected():
    noise = np.random.default_rng(2).standard_normal((900, 8))
    rising = np.arange(900.0)[:, None] * np.array([0.03, 0.3, 3, 30] * 2) + noise
    _, _, expected = run(rising)
    assert (rising - expected)[600:].mean(0) == pytest.approx(np.zeros(8), abs=0.25)


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["Cauchy", "random walk of Student t3"])
def test_a_wild_value_makes_one_extreme_and_not_two(kind):
    _, innovations, _ = run(STREAMS["KINDS"][kind](np.random.default_rng(3), (500 * LONGER, 128)))
    extreme = np.abs(innovations[100:]) > np.quantile(np.abs(innovations[100:]), 0.98)
    after = extreme[1:][extreme[:-1]].mean()
    assert after < 0.04  # 0.02 by chance


def test_a_spike_moves_what_is_expected_by_no_more_than_it_is_tamed_to():
    values = np.random.default_rng(4).standard_normal((300, 1))
    spiked = values.copy()
    spiked[200] = 1e6
    _, _, expected = run(spiked)
    assert np.abs(expected[201:]).max() < 2 * CLIP


def test_continuations_are_what_the_stream_itself_may_do_next():
    noise = np.random.default_rng(5).standard_normal((1000, 1))
    values = STREAMS["autoregressive"](noise, 0.8)
    predictor, innovations, _ = run(values)
    drawn = np.random.default_rng(6).choice(innovations[WARM_UP:, 0], (2000, 40))
    made = predictor.continuations(0, drawn)
    assert made.shape == (2000, 40)
    assert made[:, 0].mean() == pytest.approx(0.8 * values[-1, 0], abs=0.3)
    assert made[:, -1].std() == pytest.approx((1 / (1 - 0.8**2)) ** 0.5, rel=0.25)


def test_a_constant_stream_has_innovations_of_no_size():
    _, innovations, expected = run(np.full((200, 2), 0.25))
    assert np.isfinite(innovations[WARM_UP:]).all()
    assert expected[-1] == pytest.approx([0.25, 0.25])


def test_streams_do_not_depend_on_each_other():
    values = np.random.default_rng(6).standard_normal((200, 3))
    _, together, _ = run(values)
    _, alone, _ = run(values[:, 1:2])
    assert together[WARM_UP:, 1] == pytest.approx(alone[WARM_UP:, 0])


def test_units_of_a_silent_stream_stay_above_0_and_its_first_values_are_of_some_units():
    values = np.zeros((300, 1))
    values[200:, 0] = np.random.default_rng(7).binomial(128, 0.1, 100) / 128
    predictor, innovations, _ = run(values[:200])
    assert predictor.spreads(np.array([0])) > 0
    assert predictor.ties(np.array([0])) >= 0
    _, innovations, _ = run(values)
    assert np.abs(innovations[200:]).max() < 20
