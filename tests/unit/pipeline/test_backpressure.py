"""AIMD sampling: falls fast, recovers slowly, stays within its limits and samples at its rate."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.config.sampling import SamplingConfig
from asys_bench.pipeline.backpressure import HOLD_NS, AdaptiveSampler

SECOND = 1_000_000_000


def test_a_refusal_halves_the_rate_once_per_hold_time():
    sampler = AdaptiveSampler(SamplingConfig(), seed=1)
    sampler.congested(0)
    sampler.congested(HOLD_NS - 1)
    assert sampler.rate == 0.5
    sampler.congested(HOLD_NS)
    assert sampler.rate == 0.25
    assert sampler.decreases == 2


def test_the_rate_recovers_additively_to_its_maximum_and_no_further():
    sampler = AdaptiveSampler(SamplingConfig(increase_per_s=0.1, max_rate=0.8), seed=1)
    sampler.congested(0)
    assert sampler.rate == pytest.approx(0.4)
    sampler.clear(2 * SECOND)
    assert sampler.rate == pytest.approx(0.6)
    sampler.clear(100 * SECOND)
    assert sampler.rate == 0.8


def test_the_rate_stays_between_the_watermarks():
    sampler = AdaptiveSampler(SamplingConfig(), seed=1)
    sampler.observe_fill(0.8, 0)
    assert sampler.rate == 0.5
    sampler.observe_fill(0.6, 10 * SECOND)
    assert sampler.rate == 0.5
    sampler.observe_fill(0.1, 11 * SECOND)
    assert sampler.rate == pytest.approx(0.55)


def test_a_bus_that_goes_on_filling_is_answered_at_once_and_never_gets_full():
    """A reader that stalls: the bus fills by what is let through; nothing may be refused."""
    sampler = AdaptiveSampler(SamplingConfig(), seed=1)
    fill, now = 0.0, 0
    for _ in range(3000):  # three seconds in which an unsampled stream would fill the bus thrice
        now += SECOND // 1000
        fill += 0.001 * sampler.rate
        sampler.observe_fill(fill, now)
    assert fill < 1.0
    assert sampler.rate < 0.1
    before = sampler.decreases
    sampler.observe_fill(fill, now + 1)
    assert sampler.decreases == before, "the same fill again is no news"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**9)), max_size=200))
def test_the_rate_never_leaves_its_limits(events):
    config = SamplingConfig(min_rate=0.05, max_rate=0.9)
    sampler = AdaptiveSampler(config, seed=1)
    now = 0
    for is_full, passed in events:
        now += passed
        if is_full:
            sampler.congested(now)
        else:
            sampler.clear(now)
        assert config.min_rate <= sampler.rate <= config.max_rate


def test_it_samples_at_its_rate_and_leaves_global_generators_alone():
    before = (random.getstate(), torch.random.get_rng_state())
    sampler = AdaptiveSampler(SamplingConfig(max_rate=0.3), seed=7)
    taken = sum(sampler.take() for _ in range(20_000))
    assert 0.28 < taken / 20_000 < 0.32
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
