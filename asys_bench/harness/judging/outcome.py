"""What a run came to as a whole: its validity, its counts, and what a reader should know. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asys_bench.harness.judging.judge import CaseRecord, judge, suite_verdict
from asys_bench.harness.judging.stats import rounds_to_fail
from asys_bench.harness.planning.contender import Contender
from asys_bench.harness.planning.suite import Defaults
from asys_bench.harness.planning.suite_file import LoadedSuite
from asys_bench.harness.plugins import metrics_of, scenario_plugin
from asys_bench.harness.results.result import (
    Case,
    CheckResult,
    Counts,
    Reason,
    Result,
    Subject,
    Validity,
)
from asys_bench.harness.results.result_run import Level, RoundStatus, SuiteInfo, TargetKind, Verdict


def validity_of(
    cases: Sequence[Case], checks: Sequence[CheckResult], max_noisy_share: float
) -> Validity:
    """Whether what was measured can be used: no judged case crashed, hung, lost a packet or was
    disturbed in more than `max_noisy_share` of its rounds."""
    reasons: list[Reason] = []
    for check in checks:
        if not check.ok and check.level is Level.ERROR:
            message = f"{check.name}: wanted {check.want}, got {check.got}"
            reasons.append(Reason(kind="environment", message=message))
    fatal = bool(reasons)
    kinds = {"crashed": "crash", "timeout": "timeout", "invalid": "integrity"}
    for case in cases:
        if case.status.value in kinds:
            broken = next(r for r in case.rounds if r.status is not RoundStatus.OK)
            reasons.append(
                Reason.model_validate(
                    {"kind": kinds[case.status.value], "case": case.id,
                     "round": broken.index, "message": broken.error or case.status.value}
                )
            )  # fmt: skip
            fatal = fatal or case.gated
        noisy = sum(r.noise.noisy and not r.replaced for r in case.rounds)
        if case.gated and noisy > max_noisy_share * len(case.rounds):
            message = f"{noisy} of {len(case.rounds)} rounds were disturbed"
            reasons.append(Reason(kind="noise", case=case.id, message=message))
            fatal = True
    return Validity(valid=not fatal, reasons=reasons)


@dataclass(frozen=True)
class Conclusion:
    """What a result says of the run as a whole."""

    validity: Validity
    verdict: Verdict
    exit_code: int
    counts: Counts


def conclude(
    cases: Sequence[Case],
    checks: Sequence[CheckResult],
    defaults: Defaults,
    *,
    interrupted: bool = False,
    refused: bool = False,
) -> Conclusion:
    """Judged cases -> the run's validity, verdict, exit code and counts."""
    validity = validity_of(cases, checks, defaults.noise.max_share)
    verdicts = [target.verdict for case in cases if case.gated for target in case.targets]
    verdict, code = suite_verdict(
        verdicts,
        valid=validity.valid,
        interrupted=interrupted,
        refused=refused,
        inconclusive_fails=defaults.on_inconclusive == "fail",
    )
    return Conclusion(validity, verdict, code, counts_of(cases, verdicts))


def power_notes(loaded: LoadedSuite) -> list[str]:
    """Cases with so few rounds that no miss, however gross, could be called a FAIL."""
    confidence = loaded.suite.defaults.confidence
    tested = [
        (contender, target)
        for contender in loaded.contenders
        if contender.gated
        for target in (placed.target for placed in contender.targets)
        if target.kind is not TargetKind.INVARIANT
    ]
    weak = {}
    for contender, target in tested:
        need = rounds_to_fail(len(tested), len(contender.looks), confidence)
        sign_test = target.kind is not TargetKind.QUANTILE and target.stat != "mean"
        if sign_test and contender.looks[-1].rounds < need:
            weak[contender.id] = need
    return [
        f"{name}: too few rounds for a FAIL among {len(tested)} targets (it takes {need}): a miss "
        "shows as INCONCLUSIVE"
        for name, need in weak.items()
    ]


def counts_of(cases: Sequence[Case], verdicts: Sequence[Verdict]) -> Counts:
    """Gated targets by verdict, and what else there was."""
    return Counts(
        passed=verdicts.count(Verdict.PASS),
        failed=verdicts.count(Verdict.FAIL),
        inconclusive=verdicts.count(Verdict.INCONCLUSIVE),
        invalid=verdicts.count(Verdict.INVALID),
        ungated=sum(len(case.targets) for case in cases if not case.gated),
        cases=len(cases),
        rounds=sum(len(case.rounds) for case in cases),
        replaced_rounds=sum(r.replaced for case in cases for r in case.rounds),
    )


def rejudge(result: Result, loaded: LoadedSuite) -> Result:
    """Judge the stored rounds of `result` by the targets of `loaded`. Nothing is measured.

    A case that `result` did not measure comes out without data, hence without a pass. A quantile
    whose limit moved has no exact count of exceedances any more and cannot be decided.
    """
    measured = {case.id: case for case in result.cases}
    records = {c.id: _record(c, measured.get(c.id)) for c in loaded.contenders}
    defaults = loaded.suite.defaults
    floors = {floor.metric: floor.value for floor in result.instrument.floors}
    cases = judge(records, floors, defaults.confidence)
    end = conclude(cases, result.checks, defaults, interrupted=not result.run.complete)
    unused = sorted(measured.keys() - records.keys())
    notes = [*result.notes, f"judged again by {loaded.shown}; measured {result.run.started}"]
    if unused:
        notes.append(f"not in the suite any more, left out: {', '.join(unused)}")
    suite = SuiteInfo(
        name=loaded.suite.name,
        path=loaded.shown,
        sha256=loaded.sha256,
        resolved=loaded.suite.to_plain(),
    )
    return result.model_copy(
        update={
            "run": result.run.model_copy(update={"suite": suite}),
            "cases": cases,
            "validity": end.validity,
            "verdict": end.verdict,
            "exit_code": end.exit_code,
            "counts": end.counts,
            "notes": notes,
        }
    )


def _record(contender: Contender, case: Case | None) -> CaseRecord:
    metrics = metrics_of(scenario_plugin(contender.scenario))
    if case is None:
        name = contender.backend or contender.pipeline or contender.scenario
        return CaseRecord(contender, metrics, Subject(kind="scenario", name=name))
    return CaseRecord(
        contender, metrics, case.subject, list(case.rounds), reason=case.reason, log=case.log
    )
