"""Whole runs in this process: integrity, crashes, Ctrl-C, replacement, and what is never a pass."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from asys_bench.contracts.scenario import (
    MetricKind,
    MetricSpec,
    ScenarioOptions,
    ScenarioPlugin,
)
from asys_bench.harness.measuring.launch import RoundEnd
from asys_bench.harness.results.result_run import CaseStatus, RoundStatus, Verdict
from asys_bench.harness.results.store import read_result
from asys_bench.registry import registry

from .conftest import InlineLauncher, faulty_backend

HEAD = """\
schema: asys.suite/1
name: test
defaults:
  rounds: 6
  samples_per_round: 200
  warmup: {until: none}
  min_events: 100
  noise: {spin_gap_us: null, steal_ratio: null}
"""


def scenario(name, run, kind=MetricKind.SAMPLES):
    metrics = {"thing_ms": MetricSpec("lower", kind, "a thing")}
    plugin = ScenarioPlugin(name, "for tests", ScenarioOptions, "nothing", metrics, run)
    registry("scenario").register(plugin)


def constant(context):
    with context.timed():
        context.recorder("thing_ms").extend(np.full(context.samples, 1_000_000))


@pytest.mark.parametrize(
    ("fault", "word"),
    [("lose", "lost"), ("tear", "torn"), ("duplicate", "duplicated"), ("swap", "reordered")],
)
def test_one_wrong_packet_turns_the_run_invalid(run_suite, fault, word):
    registry("backend").register(faulty_backend(fault))
    runner = run_suite(
        HEAD
        + f"""\
cases:
  - id: bus.throughput
    scenario: offline
    backend: faulty_{fault}
    params: {{payload_bytes: 256, total_mib: 0.5}}
    targets: [throughput_gbps.median >= 0.000001]
"""
    )
    result = runner.run()
    assert (result.verdict, result.exit_code) == (Verdict.INVALID, 4)
    assert not result.validity.valid
    assert any(word in reason.message for reason in result.validity.reasons), result.validity
    assert result.cases[0].targets[0].verdict is Verdict.INVALID


def test_a_whole_backend_passes_the_same_case(run_suite):
    result = run_suite(
        HEAD
        + """\
cases:
  - id: bus.throughput
    scenario: offline
    backend: memcpy
    params: {payload_bytes: 256, total_mib: 0.5}
    targets: [throughput_gbps.median >= 0.000001, torn_frames.count == 0, lost_packets.count == 0]
"""
    ).run()
    assert (result.verdict, result.exit_code) == (Verdict.PASS, 0)


def test_a_crashed_contender_is_reported_and_the_others_go_on(run_suite):
    def crash(context):
        raise RuntimeError("gone")

    scenario("steady", constant)
    scenario("crashing", crash)
    result = run_suite(
        HEAD
        + """\
cases:
  - {id: a.crashes, scenario: crashing, targets: [thing_ms.median <= 2]}
  - {id: b.works, scenario: steady, targets: [thing_ms.median <= 2]}
"""
    ).run()
    broken, working = result.cases
    assert broken.status is CaseStatus.CRASHED
    assert "gone" in (broken.reason or "")
    assert len(broken.rounds) == 1, "a crashed contender is not tried again"
    assert working.targets[0].verdict is Verdict.PASS
    assert len(working.rounds) == 6
    assert (result.verdict, result.exit_code) == (Verdict.INVALID, 4)


def test_a_crashed_contender_that_is_not_judged_does_not_fail_the_run(run_suite):
    def crash(context):
        raise RuntimeError("gone")

    scenario("steady", constant)
    scenario("crashing", crash)
    result = run_suite(
        HEAD
        + """\
cases:
  - {id: a.crashes, scenario: crashing}
  - {id: b.works, scenario: steady, targets: [thing_ms.median <= 2]}
"""
    ).run()
    assert result.verdict is Verdict.PASS
    assert result.validity.reasons[0].kind == "crash"


def test_a_suite_without_samples_never_passes(run_suite):
    scenario("empty", lambda context: context.recorder("thing_ms") and None)
    result = run_suite(
        HEAD
        + """\
cases:
  - {id: a, scenario: empty, targets: [thing_ms.median <= 2, thing_ms.p99 <= 2]}
"""
    ).run()
    assert {t.verdict for t in result.cases[0].targets} == {Verdict.INCONCLUSIVE}
    assert (result.verdict, result.exit_code) == (Verdict.INCONCLUSIVE, 3)


def test_a_suite_without_targets_never_passes(run_suite):
    scenario("steady", constant)
    result = run_suite(HEAD + "cases: [{id: a, scenario: steady}]\n").run()
    assert result.exit_code == 3


def test_ctrl_c_leaves_a_readable_partial_result(run_suite):
    calls = []

    def interrupt(spec):
        calls.append(spec)
        if len(calls) == 4:
            raise KeyboardInterrupt

    scenario("steady", constant)
    runner = run_suite(
        HEAD + "cases: [{id: a, scenario: steady, targets: [thing_ms.median <= 2]}]\n",
        InlineLauncher(before=interrupt),
    )
    result = runner.run()
    assert (result.verdict, result.exit_code) == (Verdict.INTERRUPTED, 130)
    stored = read_result(runner.path)
    assert stored == result
    assert not stored.run.complete
    assert len(stored.cases[0].rounds) == 3
    assert stored.cases[0].targets[0].verdict is Verdict.INCONCLUSIVE


def test_after_every_round_the_file_is_whole(run_suite):
    scenario("steady", constant)
    seen = []
    runner = None

    def look(spec):
        if runner is not None and runner.path.exists():
            seen.append(len(json.loads(runner.path.read_text())["cases"][0]["rounds"]))

    runner = run_suite(HEAD + "cases: [{id: a, scenario: steady}]\n", InlineLauncher(before=look))
    runner.run()
    assert seen == [1, 2, 3, 4, 5]


class ClosingLauncher(InlineLauncher):
    def close(self):
        self.specs.append(None)


def test_each_block_of_rounds_has_a_server_of_its_own(run_suite):
    scenario("steady", constant)
    launcher = ClosingLauncher()
    run_suite(
        HEAD.replace("rounds: 6", "rounds: 2")
        + "cases: [{id: a, scenario: steady}, {id: b, scenario: steady}]\n",
        launcher,
    ).run()
    closed = [number for number, spec in enumerate(launcher.specs) if spec is None]
    assert closed == [2, 5, 6]  # and once more at the end


class NoisyLauncher(InlineLauncher):
    """Every third round had a long gap."""

    def run(self, spec, timeout_s):
        end = super().run(spec, timeout_s)
        gap = 9000.0 if len(self.specs) % 3 == 0 else 10.0
        noise = {**end.document["noise"], "spin_gap_us": gap}
        return replace(end, document={**end.document, "noise": noise})


def test_rounds_are_replaced_on_noise_evidence_at_most_a_tenth(run_suite):
    scenario("steady", constant)
    text = HEAD.replace("rounds: 6", "rounds: 20").replace("spin_gap_us: null", "spin_gap_us: 1000")
    result = run_suite(
        text + "cases: [{id: a, scenario: steady, targets: [thing_ms.median <= 2]}]\n",
        NoisyLauncher(),
    ).run()
    (case,) = result.cases
    assert sum(r.replaced for r in case.rounds) == 2
    assert sum(not r.replaced for r in case.rounds) == 20
    assert all(r.noise.evidence for r in case.rounds if r.replaced)
    assert result.counts.replaced_rounds == len(result.notes) == 2
    assert result.verdict is Verdict.PASS


def test_a_judged_case_disturbed_in_most_rounds_is_invalid(run_suite):
    class Storm(NoisyLauncher):
        def run(self, spec, timeout_s):
            end = InlineLauncher.run(self, spec, timeout_s)
            noise = {**end.document["noise"], "spin_gap_us": 9000.0}
            return replace(end, document={**end.document, "noise": noise})

    scenario("steady", constant)
    result = run_suite(
        HEAD.replace("spin_gap_us: null", "spin_gap_us: 1000")
        + "cases: [{id: a, scenario: steady, targets: [thing_ms.median <= 2]}]\n",
        Storm(),
    ).run()
    assert (result.verdict, result.validity.reasons[0].kind) == (Verdict.INVALID, "noise")


def in_turn(*values_ms):
    """A scenario's `run`: one value each round, over and over."""
    rounds = iter(range(1000))

    def run(context):
        value = int(values_ms[next(rounds) % len(values_ms)] * 1e6)
        context.recorder("thing_ms").extend(np.full(context.samples, value))

    return run


def test_an_undecided_case_goes_on_to_its_next_look_where_that_may_decide_it(run_suite):
    scenario("steady", constant)
    scenario("near", in_turn(0.7, 0.8, 0.9, 1.1))
    scenario("hopeless", in_turn(0.5, 0.999, 1.0005, 1.5))
    result = run_suite(
        HEAD.replace("rounds: 6", "looks: [8, 24]")
        + """\
cases:
  - {id: decided, scenario: steady, targets: [thing_ms.median <= 2]}
  - {id: open, scenario: near, targets: [thing_ms.median <= 1]}
  - {id: given_up, scenario: hopeless, targets: [thing_ms.median <= 1]}
"""
    ).run()
    decided, undecided, given_up = result.cases
    assert [len(case.rounds) for case in result.cases] == [8, 24, 8]
    assert (decided.targets[0].look, decided.targets[0].verdict) == (1, Verdict.PASS)
    assert (undecided.targets[0].look, undecided.targets[0].verdict) == (2, Verdict.PASS)
    assert given_up.targets[0].verdict is Verdict.INCONCLUSIVE
    assert any(
        note.startswith("given_up: no more rounds: 16 would hardly") for note in result.notes
    )


def test_a_budget_of_seconds_leaves_open_what_it_has_no_room_for(run_suite):
    scenario("near", in_turn(0.7, 0.8, 0.9, 1.1))
    result = run_suite(
        HEAD.replace("rounds: 6", "looks: [8, 24]\n  budget_s: 0.001")
        + "cases: [{id: open, scenario: near, targets: [thing_ms.median <= 1]}]\n"
    ).run()
    (case,) = result.cases
    assert (len(case.rounds), case.targets[0].verdict) == (8, Verdict.INCONCLUSIVE)
    assert any("open: no more rounds: 16 take" in note for note in result.notes)


@pytest.mark.rest
def test_a_miss_that_does_not_stand_after_holm_goes_on_to_the_next_look(run_suite):
    scenario("holm_constant", constant)  # 1 ms in every round
    cases = "".join(
        f"""\
  - id: miss.{index}
    scenario: holm_constant
    targets: [thing_ms.median <= 0.5]
"""
        for index in range(8)
    )
    runner = run_suite(HEAD.replace("rounds: 6", "looks: [8, 16]") + "cases:\n" + cases)
    result = runner.run()
    assert {len(case.rounds) for case in result.cases} == {16}
    assert {case.targets[0].verdict for case in result.cases} == {Verdict.FAIL}
    assert result.exit_code == 1


def test_a_refused_environment_measures_nothing(run_suite):
    scenario("steady", constant)
    launcher = InlineLauncher()
    result = run_suite(
        HEAD + "environment: {cores: {min: 100000, level: error}}\n"
        "cases: [{id: a, scenario: steady}]\n", launcher,
    ).run()  # fmt: skip
    assert (result.verdict, result.exit_code) == (Verdict.REFUSED, 5)
    assert launcher.specs == []
    assert result.checks[0].fix


def test_a_timeout_is_reported_as_one(run_suite):
    class Hanging(InlineLauncher):
        def run(self, spec, timeout_s):
            return RoundEnd(RoundStatus.TIMEOUT, timeout_s, error="no result within 60 s")

    scenario("steady", constant)
    result = run_suite(
        HEAD + "cases: [{id: a, scenario: steady, targets: [thing_ms.median <= 2]}]\n", Hanging()
    ).run()
    assert result.cases[0].status is CaseStatus.TIMEOUT
    assert result.exit_code == 4


def test_equal_suites_and_seeds_plan_equal_rounds(run_suite):
    scenario("steady", constant)
    text = HEAD + "cases: [{id: a, scenario: steady}, {id: b, scenario: steady}]\n"
    seeds = []
    for _ in range(2):
        launcher = InlineLauncher()
        run_suite(text, launcher).run()
        seeds.append([spec.seed for spec in launcher.specs])
    assert seeds[0] == seeds[1]
