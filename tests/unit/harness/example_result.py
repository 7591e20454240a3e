"""A small realistic `asys.result/1`: one target of every verdict, an unjudged and a crashed contender."""

from __future__ import annotations

import random
from typing import Any

from asys_bench.contracts.stats import bucket_of
from asys_bench.harness.results.result import (
    Case,
    CheckResult,
    Counts,
    Estimate,
    Exceedance,
    Floor,
    Hdr,
    Instrument,
    Integrity,
    Interval,
    Machine,
    MetricSummary,
    Needs,
    Noise,
    Reason,
    Result,
    Round,
    RunInfo,
    SampleSummary,
    Subject,
    SuiteInfo,
    TargetResult,
    Validity,
)  # fmt: skip
from asys_bench.harness.results.result_run import (
    Better,
    CaseStatus,
    Level,
    Op,
    Role,
    RoundStatus,
    TargetKind,
    Verdict,
)  # fmt: skip

ROUNDS = 12


def hdr_of(values_ns: list[int]) -> Hdr:
    buckets: dict[int, int] = {}
    for value in values_ns:
        buckets[bucket_of(value)] = buckets.get(bucket_of(value), 0) + 1
    return Hdr(
        unit="ns", scale=1e-6, count=len(values_ns), maximum=max(values_ns),
        buckets=sorted(buckets.items()),
    )  # fmt: skip


def rounds_of(
    metric: str, centre_ms: float, bound: float, seed: int, noisy: int | None = None
) -> tuple[list[Round], Hdr]:
    """Twelve rounds of 500 log-normal samples; round `noisy` is replaced on evidence."""
    rng = random.Random(seed)
    rounds, everything = [], []
    for index in range(ROUNDS + (noisy is not None)):
        values = sorted(centre_ms * rng.lognormvariate(0, 0.35) for _ in range(500))
        values_ns = [int(value * 1e6) for value in values]
        replaced = index == noisy
        if not replaced:
            everything += values_ns
        rounds.append(
            Round(
                index=index, order=3 * index + seed % 3, pid=41_000 + index, seed=1000 + index,
                started_s=2.1 * (3 * index + seed % 3), wall_s=2.0, warmup_s=0.2,
                warmup_steady=True, n={metric: 500},
                values={metric: SampleSummary(
                    n=500, median=values[250], mean=sum(values) / 500, min=values[0],
                    max=values[-1], p90=values[450], p99=values[495],
                )},
                exceed={metric: [Exceedance(
                    bound=bound, op=Op.AT_MOST, n=500, k=sum(value > bound for value in values)
                )]},
                hdr={metric: hdr_of(values_ns)},
                integrity=Integrity(offered=500, delivered=500),
                noise=Noise(
                    involuntary_switches=240 if replaced else 3, steal_ms=0.0, pressure_ms=1.5,
                    spin_gap_us=4100.0 if replaced else 18.0, noisy=replaced,
                    evidence=["spin gap 4100 us > 1000 us"] if replaced else [],
                ),
                replaced=replaced,
            )
        )  # fmt: skip
    return rounds, hdr_of(everything)


def latency_target(verdict: Verdict, bound: float, low: float, value: float, high: float,
                   gated: bool = True) -> TargetResult:  # fmt: skip
    inconclusive = verdict is Verdict.INCONCLUSIVE
    return TargetResult(
        expr=f"hook_latency_ms.p99 <= {bound:g}", where="suites/example.yaml:14",
        kind=TargetKind.QUANTILE, method="binomial on exact exceedances, rounds as clusters",
        gated=gated, metric="hook_latency_ms", stat="p99", unit="ms", op=Op.AT_MOST, bound=bound,
        observed=value, ci=Interval(low=low, high=high, confidence=0.95), p_value=0.004,
        alpha_spent=0.025, look=1, looks=2, margin=(bound - value) / bound, verdict=verdict,
        reason=f"the interval {'contains' if inconclusive else 'is wholly on one side of'} the limit",
        needs=Needs(rounds=36, samples=18_000, advice="run 36 rounds more") if inconclusive else None,
        points=[value * (1 + 0.02 * (index % 5 - 2)) for index in range(ROUNDS)],
    )  # fmt: skip


def latency_case(name: str, seed: int, target: TargetResult, *, gated: bool = True,
                 noisy: int | None = None) -> Case:  # fmt: skip
    assert target.bound is not None
    assert target.observed is not None
    rounds, merged = rounds_of("hook_latency_ms", target.observed / 2.2, target.bound, seed, noisy)
    medians = [r.values["hook_latency_ms"].median or 0.0 for r in rounds if not r.replaced]
    return Case(
        id=f"hook.latency[{name}]", family="hook.latency", where="suites/example.yaml:9",
        gated=gated, scenario="closed", status=CaseStatus.MEASURED,
        subject=Subject(
            kind="pipeline", name="suites/pipelines/hook.yaml", backend=name,
            params={"payload_bytes": 4096}, pipeline_sha256="ab" * 32,
            build_hashes={"plugin.py": "cd" * 32},
        ),
        rounds=rounds,
        metrics={"hook_latency_ms": MetricSummary(
            unit="ms", better=Better.LOWER, n=6000, rounds=ROUNDS, deff=1.6,
            stats={
                "median": Estimate(value=sorted(medians)[6], ci=Interval(
                    low=min(medians), high=max(medians), confidence=0.95)),
                "p99": Estimate(value=target.observed, ci=target.ci),
                "max": Estimate(value=target.observed * 3),
            },
            hdr=merged,
        )},
        targets=[target],
    )  # fmt: skip


def example_result() -> Result:
    """The document; every verdict that a target can have appears once."""
    ratio = TargetResult(
        expr="throughput_gbps.median >= 0.8 x memcpy", where="suites/example.yaml:22",
        kind=TargetKind.RATIO, method="sign test on per-round ln ratio", gated=True,
        metric="throughput_gbps", stat="median", unit="x memcpy", op=Op.AT_LEAST, bound=0.8,
        reference="memcpy@bus.throughput", observed=0.91,
        ci=Interval(low=0.86, high=0.97, confidence=0.95), p_value=0.0002, alpha_spent=0.025,
        look=1, looks=2, margin=0.1375, verdict=Verdict.PASS,
        reason="the interval 0.86..0.97 x memcpy is wholly inside >= 0.8",
        points=[0.91 + 0.01 * (index % 7 - 3) for index in range(ROUNDS)],
    )  # fmt: skip
    throughput = Case(
        id="bus.throughput[cpp_spmc]", family="bus.throughput", where="suites/example.yaml:18",
        gated=True, scenario="offline", status=CaseStatus.MEASURED,
        subject=Subject(kind="backend", name="cpp_spmc", backend="cpp_spmc",
                        params={"payload_bytes": 1 << 20, "consumers": 1}),
        metrics={"throughput_gbps": MetricSummary(
            unit="GB/s", better=Better.HIGHER, n=ROUNDS, rounds=ROUNDS,
            stats={"median": Estimate(value=8.4, ci=Interval(low=8.1, high=8.8, confidence=0.95))},
        )},
        targets=[ratio],
    )  # fmt: skip
    crashed = Case(
        id="bus.throughput[numba_ring]", family="bus.throughput", where="suites/example.yaml:18",
        gated=False, scenario="offline", status=CaseStatus.CRASHED,
        reason="round 3 was ended by signal 11 (SIGSEGV)", log="Fatal Python error: Segmentation fault",
        subject=Subject(kind="backend", name="numba_ring", backend="numba_ring"),
        rounds=[Round(index=3, order=11, pid=41_999, seed=7, started_s=12.5, wall_s=0.4,
                      status=RoundStatus.CRASHED, error="signal 11 (SIGSEGV)")],
    )  # fmt: skip
    torn = Case(
        id="bus.throughput[torn_bus]", family="bus.throughput", where="suites/example.yaml:18",
        gated=True, scenario="offline", status=CaseStatus.INVALID, reason="1 torn frame in round 5",
        subject=Subject(kind="backend", name="torn_bus", backend="torn_bus"),
        rounds=[Round(index=5, order=16, pid=42_005, seed=9, started_s=20.0, wall_s=1.9,
                      status=RoundStatus.INVALID, error="torn 1",
                      integrity=Integrity(offered=4000, delivered=4000, torn=1, ok=False))],
        targets=[TargetResult(
            expr="torn_frames.count == 0", where="suites/example.yaml:23",
            kind=TargetKind.INVARIANT, method="exact count", gated=True, metric="torn_frames",
            stat="count", unit="", op=Op.EQUAL, bound=0, observed=1, ci=None, alpha_spent=0.0,
            look=1, looks=2, margin=-1.0, verdict=Verdict.INVALID, reason="1 torn frame in round 5",
        )],
    )  # fmt: skip
    reference = Case(
        id="memcpy@bus.throughput", family="memcpy", where="suites/example.yaml:6",
        role=Role.REFERENCE, gated=False, scenario="offline", status=CaseStatus.MEASURED,
        subject=Subject(kind="backend", name="memcpy", backend="memcpy"),
        metrics={"throughput_gbps": MetricSummary(
            unit="GB/s", better=Better.HIGHER, n=ROUNDS, rounds=ROUNDS,
            stats={"median": Estimate(value=9.2, ci=Interval(low=8.9, high=9.5, confidence=0.95))},
        )},
    )  # fmt: skip
    return Result(
        run=RunInfo(
            id="20260102-030405-example", started="2026-01-02T03:04:05+00:00", elapsed_s=93.4,
            complete=True, command=["asys-bench", "run", "suites/example.yaml"], version="0.1.0",
            commit="0123456789abcdef0123456789abcdef01234567", dirty=False, seed=0,
            suite=SuiteInfo(name="example", path="suites/example.yaml", sha256="ef" * 32,
                            resolved={"schema": "asys.suite/1", "name": "example"}),
        ),
        machine=Machine(
            machine_class="bench-2core", identity_sha256="12" * 32,
            identity={"cpu": "Example CPU @ 3 GHz", "cores": 2, "kernel": "6.1", "python": "3.11.9"},
            state={"governor": "performance", "load_1m": 0.7, "turbo": None},
        ),
        instrument=Instrument(
            timer="perf_counter_ns", timer_cost_ns=48.0, timer_resolution_ns=32.0,
            floors=[Floor(metric="hook_latency_ms", value=0.0021, unit="ms",
                          source="null backend, p50 of 2000 pushes")],
        ),
        checks=[
            CheckResult(name="governor", want="performance", got="performance", ok=True,
                        level=Level.WARN),
            CheckResult(name="noise_floor_us", want="p99 <= 50", got="p99 73", ok=False,
                        level=Level.WARN, fix="close other programs, or pin them to other cores"),
        ],
        validity=Validity(valid=False, reasons=[
            Reason(kind="integrity", case="bus.throughput[torn_bus]", round=5,
                   message="1 torn frame"),
        ]),
        cases=[
            latency_case("cpp_spmc", 1, latency_target(Verdict.PASS, 0.05, 0.021, 0.024, 0.028)),
            latency_case("mp_queue", 2, latency_target(Verdict.FAIL, 0.05, 0.071, 0.078, 0.094),
                         noisy=4),
            latency_case("numba_ring", 3,
                         latency_target(Verdict.INCONCLUSIVE, 0.05, 0.041, 0.047, 0.061)),
            throughput, crashed, torn, reference,
        ],
        verdict=Verdict.INVALID, exit_code=4,
        counts=Counts(passed=2, failed=1, inconclusive=1, invalid=1, cases=6, rounds=39,
                      replaced_rounds=1),
        notes=["1 round of hook.latency[mp_queue] was replaced: spin gap 4100 us > 1000 us"],
    )  # fmt: skip


def example_data() -> dict[str, Any]:
    """As it lies in result.json."""
    return example_result().to_plain()
