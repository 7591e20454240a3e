"""A stored result judged again: by its own suite, or by one whose limits have moved."""

from __future__ import annotations

from asys_bench.harness.judging.judge import CaseRecord, judge
from asys_bench.harness.judging.outcome import conclude
from asys_bench.harness.planning.contender import Contender
from asys_bench.harness.planning.suite_file import LoadedSuite
from asys_bench.harness.plugins import metrics_of, scenario_plugin
from asys_bench.harness.results.result import Case, Result, Subject
from asys_bench.harness.results.result_run import SuiteInfo


def rejudge(result: Result, loaded: LoadedSuite) -> Result:
    """The rounds of `result` under the targets of `loaded`. Nothing is measured.

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
