"""Planted births on a synthetic host (`planted_births`): a short run here, ten long ones in `make soak`."""

from __future__ import annotations

import os

import numpy as np
import pytest

from .planted_births import run, stationary

SOAK = os.environ.get("ASYS_SOAK") == "1"


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(7200 if SOAK else 600)
def test_declared_births_are_planted_ones_at_their_steps():
    seeds, rows, d_sae = (range(10), 1 << 20, 512) if SOAK else ([3], 3 << 16, 256)
    outcomes = [run(seed, rows, d_sae) for seed in seeds]
    births = [birth for outcome in outcomes for birth in outcome.births]
    right = [birth for birth in births if birth["match"] != "no"]
    assert len(right) >= 5 * len(outcomes)
    # One seed has some 20 births, of which two at the bound's edge are within its noise.
    assert len(right) >= (0.9 if SOAK else 0.8) * len(births)
    errors = [abs(birth["error"]) for birth in right]
    assert np.median(errors) <= 0.01


@pytest.mark.timeout(7200)
@pytest.mark.soak("twenty runs")
def test_a_stationary_host_has_no_births_and_no_differences():
    before, false, lives = None, 0, 0
    for seed in range(20):
        outcome, before = stationary(seed, 1 << 19, 512, before)
        false += len(outcome.births) + (outcome.halves or 0) + (outcome.pair or 0)
        lives += outcome.lives
    assert false <= 0.002 * lives
