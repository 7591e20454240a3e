"""The bench judged by itself: equal must not differ, 5 % slower must be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_INVALID, EXIT_OK
from asys_bench.harness.planning.suite_file import load_suite
from asys_bench.harness.progress import Progress, Silent
from asys_bench.harness.results.result import Case, Result
from asys_bench.harness.results.result_run import CaseStatus
from asys_bench.harness.runner import SuiteRunner

SUITE = "suites/selftest.yaml"
EQUAL, SLOWER = "hook.equal", "hook.slower"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the bench said of a pair whose truth is known."""

    name: str
    want: str
    got: str
    ok: bool


def run_selftest(
    out: Path, sets: Sequence[str] = (), progress: Progress | None = None
) -> tuple[Result, list[Finding], int]:
    """Run the selftest suite; (result, findings, exit code: 0 as it should be, 1 not, 4 invalid)."""
    loaded = load_suite(SUITE, sets)
    runner = SuiteRunner(loaded, out, ["asys-bench", "selftest"], progress or Silent())
    result = runner.run()
    cases = {case.id: case for case in result.cases}
    if any(cases[name].status is not CaseStatus.MEASURED for name in (EQUAL, SLOWER)):
        return result, [], EXIT_INVALID
    found = findings(cases)
    return result, found, EXIT_OK if all(one.ok for one in found) else EXIT_FAILED


def findings(cases: dict[str, Case]) -> list[Finding]:
    """A/A is right when its interval holds 1; the delayed hook when its interval lies above 1."""
    equal, slower = cases[EQUAL].targets[0], cases[SLOWER].targets[0]
    shown = []
    for target, name, want in (
        (equal, "A/A", "an interval that holds 1"),
        (slower, "5 % delay", "an interval above 1"),
    ):
        low = target.ci.low if target.ci is not None else None
        high = target.ci.high if target.ci is not None else None
        if low is None or high is None or target.observed is None:
            shown.append(Finding(name, want, "no interval", False))
            continue
        ok = low <= 1 <= high if name == "A/A" else low > 1
        shown.append(Finding(name, want, f"{target.observed:.4f} [{low:.4f}, {high:.4f}]", ok))
    return shown
