"""What faults and storms take: recovery, the host's step, the way of everybody out.

`make soak` (ASYS_SOAK=1) strikes 100 times everything but the host, and 200 single faults, and prints
what they took; `test_run_storms.py` has the storms that count, `suites/chaos.yaml` the targets with
verdicts.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from asys_bench.harness.measuring.launch import FreshProcess, RoundEnd
from asys_bench.harness.results.result_run import RoundStatus
from asys_bench.harness.round import RoundSpec

from .run_storms import NEVER, PIPELINE

SOAK = os.environ.get("ASYS_SOAK") == "1"
HEARTBEAT_S = 1.0
KILLS = 60
GROWTH_MIB = 32.0
pytestmark = pytest.mark.soak("minutes")


def strike(backend: str, seed: int, *sets: str, timeout_s: float = 240, **params) -> RoundEnd:
    """One round of the chaos scenario; none of what must never happen has happened in it."""
    spec = RoundSpec(
        folder="",
        scenario="chaos",
        backend=None,
        pipeline=str(PIPELINE),
        sets=[f"bus.backend={backend}", f"watchdog.heartbeat_timeout_s={HEARTBEAT_S}", *sets],
        params=params,
        samples=1,
        seed=seed,
        warmup_max_s=0,
    )
    end = FreshProcess().run(spec, timeout_s)
    assert end.status is RoundStatus.OK, f"seed {seed}: {end.error}\n{end.log}"
    counts = {
        name: end.document["values"][name]["count"]
        for name in NEVER
        if name in end.document["values"]
    }
    assert set(counts.values()) == {0}, f"seed {seed}: {counts}"
    return end


def told(what: str, values_ms) -> None:
    """Print percentiles."""
    values = np.concatenate(values_ms)
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99), method="inverted_cdf")
    print(
        f"{what}: n {len(values)}, median {p50:.1f} ms, p90 {p90:.1f} ms, p99 {p99:.1f} ms, "
        f"max {values.max():.1f} ms"
    )


def test_a_host_without_pauses_is_itself_again_a_second_after_a_storm():
    pace = ("host.options.synthetic.pause_ms=0",)
    storm = {
        "fault": "storm", "faults": 10, "await_recovery": False, "calm_s": 2.0, "settle_s": 2.0,
    }  # fmt: skip
    quiet = {**storm, "fault": "none", "check_weights": False}
    observed, alone = [], []
    for seed in range(10):
        end = strike("cpp_spmc", seed, *pace, **storm)
        assert end.document["n"]["unaccounted_packets"] > 20
        observed.append(end.samples["step_ms"])
        end = strike("cpp_spmc", seed, *pace, "hooks=[]", "sinks={}", **quiet)
        alone.append(end.samples["step_ms"])
        told(f"seed {seed}: host step, 1 s after a storm", [observed[-1]])
        told(f"seed {seed}: host step, unobserved", [alone[-1]])
    told("host step, 1 s after a storm", observed)
    told("host step, unobserved", alone)


@pytest.mark.parametrize(
    ("fault", "worker", "group", "faults"),
    [
        ("kill", "archive-0", "archive", 80),
        ("kill", "trainer-0", "trainer", 60),
        ("stop", "archive-0", "archive", 30),
        ("stop", "trainer-0", "trainer", 30),
    ],
)
def test_two_hundred_faults_are_recovered_from(fault, worker, group, faults):
    took, per_round = [], 20 if fault == "kill" else 15
    for seed in range(faults // per_round):
        end = strike(
            "cpp_spmc", seed, fault=fault, worker=worker, group=group, faults=per_round, calm_s=0.2,
        )  # fmt: skip
        took.append(end.samples["recovery_ms"])
        assert len(took[-1]) == per_round
        assert end.document["values"]["unread_packets"]["count"] == 0
    told(f"{fault} of {worker} to consuming", took)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["cpp_spmc", "numba_ring", "mp_queue"])
def test_five_minutes_at_full_rate_with_a_kill_every_five_seconds(backend):
    """The victim is by chance a worker, the watchdog, its fork server or a resource tracker. Rows are
    few, or the archive would have 12 GB."""
    end = strike(
        backend, 5, "host.options.synthetic.pause_ms=0", "host.options.synthetic.rows=4",
        timeout_s=1500, fault="kill", worker="anyone", faults=KILLS, calm_s=5.0, settle_s=5.0,
        await_recovery=False, record_steps=False, patience_s=300.0,
    )  # fmt: skip
    values = end.document["values"]
    print(f"{backend}: n {end.document['n']}, {values}")
    assert values["quarantined_workers"]["count"] == 0
    for process in ("host", "watchdog"):
        assert values[f"{process}_growth_mib"]["median"] <= GROWTH_MIB


@pytest.mark.parametrize("backend", ["cpp_spmc", "numba_ring"])
def test_workers_leave_when_the_host_is_killed(backend):
    took = [
        strike(backend, seed, fault="host_crash", calm_s=1.0).samples["leave_ms"]
        for seed in range(10)
    ]
    told(f"{backend}: host's death to the last process gone", took)
