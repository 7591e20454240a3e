"""The `junit` reporter: a testcase per target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.harness.results.result import Result
from asys_bench.harness.results.result_run import Verdict
from asys_bench.reports.bench_findings.finding import Finding, displayable, findings, read
from asys_bench.reports.bench_findings.headline import (
    checks_in_order,
    commit_text,
    exit_text,
    headline,
    reason_text,
)

BROKEN = (Verdict.INVALID, Verdict.REFUSED, Verdict.INTERRUPTED)


def render_junit(result: Result) -> str:
    """A testcase per target, and one for the run itself.

    FAIL is a failure, INVALID an error, INCONCLUSIVE skipped with its reason.

    The testcase `run` is an error when the run as a whole is unusable or judged nothing: a report
    without a red line would otherwise look like a pass.
    """
    result = displayable(result)
    name = f"asys-bench {result.run.suite.name}"
    time = f"{result.run.elapsed_s:.3f}"
    root = ET.Element("testsuites", name=name, time=time)
    suite = ET.SubElement(
        root, "testsuite", name=name, timestamp=result.run.started, time=time,
        hostname=result.machine.machine_class,
    )  # fmt: skip
    _properties(suite, result)
    _run(suite, result)
    for finding in findings(result):
        _target(suite, finding)
    for element in (root, suite):
        element.set("tests", str(len(suite.findall("testcase"))))
        for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            if element is suite or tag != "skipped":
                element.set(plural, str(len(suite.findall(f"testcase/{tag}"))))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _properties(suite: ET.Element, result: Result) -> None:
    facts = {
        "verdict": str(result.verdict),
        "exit_code": exit_text(result),
        "run": result.run.id,
        "commit": commit_text(result),
        "version": result.run.version,
        "seed": str(result.run.seed),
        "suite_sha256": result.run.suite.sha256,
        "machine_sha256": result.machine.identity_sha256,
    }
    properties = ET.SubElement(suite, "properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", name=name, value=value)


def _run(suite: ET.Element, result: Result) -> None:
    testcase = ET.SubElement(
        suite, "testcase", classname=result.run.suite.name, name="run is valid",
        time=f"{result.run.elapsed_s:.3f}",
    )  # fmt: skip
    judged = any(finding.gated for finding in findings(result))
    if result.validity.valid and result.verdict not in BROKEN and judged:
        return
    lines = [reason_text(reason) for reason in result.validity.reasons]
    lines += [
        f"check {check.name}: want {check.want}, got {check.got}; {check.fix}"
        for check in checks_in_order(result)
        if not check.ok
    ]
    error = ET.SubElement(testcase, "error", type=str(result.verdict), message=headline(result))
    error.text = "\n".join(lines)


def _target(suite: ET.Element, finding: Finding) -> None:
    case, target = finding.case, finding.target
    seconds = sum(found.wall_s for found in case.rounds)
    path, _, line = target.where.rpartition(":")
    testcase = ET.SubElement(
        suite, "testcase", classname=case.id, name=target.expr, time=f"{seconds:.3f}",
    )  # fmt: skip
    if path and line.isdigit():
        testcase.set("file", path)
        testcase.set("line", line)
    message = f"{target.verdict}: {target.reason}"
    tag = {Verdict.PASS: None, Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "skipped"}.get(
        target.verdict, "error"
    )
    if not target.gated:
        tag, message = "skipped", f"measured, not judged; {message}"
    if tag == "skipped" and finding.needs:
        message += f"; needs {finding.needs}"
    confidence = finding.confidence and f" ({finding.confidence})"
    evidence = (
        f"verdict   {target.verdict}\nobserved  {finding.value}\n"
        f"interval  {finding.interval}{confidence}\n"
        f"limit     {finding.limit}\nmargin    {finding.margin}\nmethod    {target.method}\n"
        f"look      {target.look} of {target.looks}\nreason    {target.reason}"
    )
    if tag is not None:
        outcome = ET.SubElement(testcase, tag, message=message)
        if tag != "skipped":
            outcome.set("type", str(target.verdict))
            outcome.text = evidence + (f"\n\n{case.log}" if case.log else "")
            return
    ET.SubElement(testcase, "system-out").text = evidence


def render(data: Mapping[str, Any]) -> str:
    """JUnit XML.

    Raises:
        ReportError: the data is not a bench result.
    """
    return render_junit(read(data))


plugin = ReporterPlugin(
    name="junit",
    summary="JUnit XML for CI systems: a testcase per target, with verdict, interval and reason",
    subject=Subject.BENCH,
    media_type="application/xml",
    suffix=".xml",
    render=render,
)
