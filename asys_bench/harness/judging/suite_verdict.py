"""From all targets to the suite's verdict and exit code: Holm on the FAIL side. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from asys_bench.contracts.exit_codes import (
    EXIT_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_OK,
    EXIT_REFUSED,
)
from asys_bench.harness.judging import stats
from asys_bench.harness.judging.verdict import Decision
from asys_bench.harness.results.result_run import Verdict


def holm_keeps(
    decisions: Sequence[Decision], looks: Sequence[int], confidence: float
) -> list[bool]:
    """For each decision, whether a FAIL survives Holm's correction over all of them."""
    p_values = [
        min(1.0, (1.0 if d.p_value is None else d.p_value) * count)
        for d, count in zip(decisions, looks, strict=True)
    ]
    return stats.holm(p_values, (1 - confidence) / 2)


def suite_verdict(
    verdicts: Sequence[Verdict],
    *,
    valid: bool,
    interrupted: bool = False,
    refused: bool = False,
    inconclusive_fails: bool = True,
) -> tuple[Verdict, int]:
    """(verdict, exit code) of the run from its gated targets. A suite with none never passes."""
    if refused:
        return Verdict.REFUSED, EXIT_REFUSED
    if interrupted:
        return Verdict.INTERRUPTED, EXIT_INTERRUPTED
    if not valid or Verdict.INVALID in verdicts:
        return Verdict.INVALID, EXIT_INVALID
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL, EXIT_FAILED
    if Verdict.INCONCLUSIVE in verdicts or not verdicts:
        soft = bool(verdicts) and not inconclusive_fails
        return Verdict.INCONCLUSIVE, EXIT_OK if soft else EXIT_INCONCLUSIVE
    return Verdict.PASS, EXIT_OK
