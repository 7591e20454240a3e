"""One group of readers and several, in one process."""

from __future__ import annotations

import pytest

from asys_bench.contracts.scenario import ScenarioError
from asys_bench.harness.plugins import scenario_plugin
from asys_bench.harness.round import RoundRunner, RoundSpec
from asys_bench.harness.scenarios import groups


def one_round(tmp_path, **params):
    spec = RoundSpec(
        folder=str(tmp_path), scenario="offline", backend="cpp_spmc", pipeline=None, sets=[],
        params={"payload_bytes": 65536, "groups": 3, "burst_pairs": 8, **params},
        samples=1, seed=5, warmup_max_s=0.0,
    )  # fmt: skip
    runner = RoundRunner(spec, scenario_plugin("offline"), tmp_path)
    scenario_plugin("offline").run(runner)
    return runner.results()[0]


def test_every_group_of_both_buses_reads_every_burst_and_the_ratio_is_of_the_producers_time(
    tmp_path, monkeypatch
):
    spent = {1: iter(range(1000, 10_000, 100)), 3: iter(range(1500, 10_000, 150))}
    burst = groups._burst

    def timed(moving, packets):
        burst(moving, packets)
        return next(spent[len(moving.consumers)])

    monkeypatch.setattr(groups, "_burst", timed)
    found = one_round(tmp_path)
    assert found["values"]["paired_push_cpu_ratio"]["median"] == pytest.approx(1.5)
    packets = 32 * (8 + groups.WARM_UP)
    assert found["faults"] == []
    assert found["integrity"]["offered"] == 2 * packets
    assert found["integrity"]["delivered"] == 4 * packets


def test_a_burst_that_does_not_fit_is_an_error_and_no_result(tmp_path):
    with pytest.raises(ScenarioError, match="does not fit"):
        one_round(tmp_path, capacity_packets=8)
