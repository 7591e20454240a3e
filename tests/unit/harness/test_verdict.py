"""Verdicts: never a pass without data, always inside the bound, and the suite's exit code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asys_bench.harness.judging.evidence import RoundData
from asys_bench.harness.judging.judge import suite_verdict
from asys_bench.harness.judging.verdict import Question, decide
from asys_bench.harness.measuring.recording import exceedances, summarise
from asys_bench.harness.planning.plan import planned_looks
from asys_bench.harness.planning.targets import parse_target
from asys_bench.harness.results.result import SampleSummary
from asys_bench.harness.results.result_run import Verdict

from .test_targets import METRICS, REFERENCES

TARGETS = (
    "hook_latency_ms.p99 <= 1",
    "hook_latency_ms.median <= 1",
    "hook_latency_ms.mean <= 1",
    "hook_latency_ms.min <= 1",
    "hook_latency_ms.median <= 1 x memcpy",
    "hook_latency_ms.p99 <= 1 x memcpy + 0.1",
    "torn_frames.count == 0",
    "torn_frames.rate <= 0.01",
)


def question(text, rounds=(12,), **more):
    target = parse_target(text, METRICS, REFERENCES)
    return Question(target, planned_looks(rounds, 0.95), **more)


def data_of(target, rounds):
    """Rounds from arrays of samples."""
    return [
        RoundData(
            block,
            {"hook_latency_ms": summarise(values)},
            {"hook_latency_ms": exceedances(values, [(target.op, target.bound)])},
            {"hook_latency_ms": values},
        )
        for block, values in enumerate(map(np.asarray, rounds))
    ]


def counts_of(events):
    return [RoundData(i, {"torn_frames": SampleSummary(n=n, count=k)})
            for i, (k, n) in enumerate(events)]  # fmt: skip


@pytest.mark.parametrize("text", TARGETS)
def test_no_data_is_never_a_pass(text):
    empty = [RoundData(i, {}) for i in range(12)]
    none = [RoundData(i, {"hook_latency_ms": SampleSummary(n=0)}) for i in range(12)]
    for data in ([], empty, none):
        assert decide(question(text), data, data).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("text", TARGETS[:6])
def test_before_the_first_planned_look_nothing_is_decided(text):
    asked = question(text)
    data = data_of(asked.target, [np.full(1000, 0.1)] * 11)
    assert decide(asked, data, data).verdict is Verdict.INCONCLUSIVE


arrays = st.lists(
    st.tuples(st.floats(-1, 1), st.floats(0.01, 0.5), st.integers(0, 2**31)),
    min_size=12,
    max_size=12,
)


@given(st.sampled_from(TARGETS[:4]), arrays)
def test_a_pass_lies_inside_its_bound_and_a_fail_outside(text, rounds):
    asked = question(text)
    samples = [np.random.default_rng(seed).lognormal(mu, sigma, 100) for mu, sigma, seed in rounds]
    found = decide(asked, data_of(asked.target, samples))
    if found.verdict is Verdict.PASS:
        assert found.observed <= asked.target.bound
        assert found.high is not None
        assert found.high <= asked.target.bound
    if found.verdict is Verdict.FAIL:
        assert found.observed > asked.target.bound
    if found.verdict is Verdict.INCONCLUSIVE:
        assert found.reason


def test_a_ratio_pairs_rounds_of_one_block():
    asked = question("hook_latency_ms.median <= 1.1 x memcpy")
    scale = np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.5, 12)))
    ours = data_of(asked.target, [np.full(50, s * 1.05) for s in scale])
    theirs = data_of(asked.target, [np.full(50, s) for s in scale])
    found = decide(asked, ours, theirs[::-1])
    assert found.verdict is Verdict.PASS
    assert found.observed == pytest.approx(1.05)


def test_an_offset_makes_the_limit_affine():
    asked = question("hook_latency_ms.median <= 1.0 x memcpy + 0.5")
    ours, theirs = (data_of(asked.target, [np.full(50, v)] * 12) for v in (1.4, 1.0))
    found = decide(asked, ours, theirs)
    assert found.verdict is Verdict.PASS
    assert found.observed == pytest.approx(1.4 / 1.5)


def test_rounds_that_disagree_too_much_are_not_gated():
    asked = question("hook_latency_ms.p99 <= 1")
    bad = np.concatenate([np.full(900, 0.1), np.full(100, 5.0)])
    rounds = [bad if i % 6 == 0 else np.full(1000, 0.1) for i in range(12)]
    found = decide(asked, data_of(asked.target, rounds))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "design effect" in found.reason


def test_a_limit_below_the_instruments_floor_is_refused():
    asked = question("hook_latency_ms.p99 <= 0.0001", floor=0.001)
    found = decide(asked, data_of(asked.target, [np.full(1000, 1e-6)] * 12))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "floor" in found.reason


def test_an_early_look_decides_and_spends_only_its_share():
    asked = question("hook_latency_ms.p99 <= 1", rounds=(6, 12))
    found = decide(asked, data_of(asked.target, [np.full(1000, 0.1)] * 6))
    assert (found.verdict, found.look) == (Verdict.PASS, 1)
    assert found.alpha == pytest.approx(0.025)


def test_an_invariant_needs_enough_opportunities():
    asked = question("torn_frames.count == 0", min_events=1000)
    assert decide(asked, counts_of([(0, 500)])).verdict is Verdict.INCONCLUSIVE
    assert decide(asked, counts_of([(0, 500), (0, 500)])).verdict is Verdict.PASS
    assert decide(asked, counts_of([(0, 500), (1, 500)])).verdict is Verdict.FAIL


def test_what_is_inconclusive_says_what_it_needs():
    asked = question("hook_latency_ms.median <= 1")
    rounds = [np.full(50, v) for v in np.linspace(0.6, 1.3, 12)]
    found = decide(asked, data_of(asked.target, rounds))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.needs_rounds is not None
    assert found.needs_rounds > 0


verdicts = st.lists(st.sampled_from([Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE,
                                     Verdict.INVALID]), max_size=6)  # fmt: skip


@given(verdicts, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_only_a_valid_finished_run_whose_targets_all_passed_passes(
    found, valid, stopped, refused, soft
):
    verdict, code = suite_verdict(
        found, valid=valid, interrupted=stopped, refused=refused, inconclusive_fails=not soft
    )
    everything = bool(found) and set(found) == {Verdict.PASS} and valid and not stopped
    assert (verdict is Verdict.PASS) == (everything and not refused)
    if code == 0:
        assert found
        assert set(found) <= {Verdict.PASS, Verdict.INCONCLUSIVE}
        assert valid
        assert not stopped


@pytest.mark.parametrize(
    ("found", "more", "want"),
    [
        ([Verdict.PASS], {}, (Verdict.PASS, 0)),
        ([Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE], {}, (Verdict.FAIL, 1)),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], {}, (Verdict.INCONCLUSIVE, 3)),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], {"inconclusive_fails": False},
         (Verdict.INCONCLUSIVE, 0)),
        ([], {}, (Verdict.INCONCLUSIVE, 3)),
        ([], {"inconclusive_fails": False}, (Verdict.INCONCLUSIVE, 3)),
        ([Verdict.FAIL], {"valid": False}, (Verdict.INVALID, 4)),
        ([Verdict.PASS], {"refused": True}, (Verdict.REFUSED, 5)),
        ([Verdict.PASS], {"interrupted": True}, (Verdict.INTERRUPTED, 130)),
    ],
)  # fmt: skip
def test_exit_codes_tell_failures_apart(found, more, want):
    assert suite_verdict(found, **{"valid": True, **more}) == want
