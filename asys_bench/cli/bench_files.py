"""Results through the reporter registry: documents, and a plain table where none is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.registry import PluginError, registry
from asys_bench.reports.page.quantity import brief, with_interval

ALIASES = {"md": "markdown"}
WRITTEN = ("html", "markdown", "junit")
"""Documents that a run writes beside its result, unless a `--config FILE` names others."""


def bench_reporters() -> dict[str, ReporterPlugin]:
    """Reporters of bench results by name; those that do not load are left out."""
    known = registry("reporter")
    failures = known.failures()
    found = {n: known.get(n, ReporterPlugin) for n in known.names() if n not in failures}
    return {name: plugin for name, plugin in found.items() if plugin.subject is Subject.BENCH}


def render_report(name: str, data: Mapping[str, Any]) -> str:
    """The document of reporter `name` (`md` for markdown).

    Raises:
        PluginError: no such reporter, or it cannot run here; ReportError: not a result it knows.
    """
    reporters = bench_reporters()
    plugin = reporters.get(ALIASES.get(name, name))
    if plugin is None:
        if name == "terminal":
            return plain_table(data)
        raise PluginError(
            f"no bench reporter named {name!r}; valid: {', '.join(sorted({*reporters, 'terminal'}))}"
        )
    reason = plugin.unavailable()
    if reason is not None:
        raise PluginError(f"reporter {name!r} cannot run here: {reason}")
    return plugin.render(data)


def write_reports(data: Mapping[str, Any], folder: Path, names: Sequence[str]) -> list[Path]:
    """Write a document per reporter beside the result; one that cannot run here is left out."""
    written = []
    reporters = bench_reporters()
    for name in names:
        plugin = reporters.get(ALIASES.get(name, name))
        if plugin is None or plugin.unavailable() is not None:
            continue
        path = folder / f"report{plugin.suffix}"
        path.write_text(plugin.render(data), encoding="utf-8")
        written.append(path)
    return written


_ORDER = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS")


def plain_table(data: Mapping[str, Any]) -> str:
    """A line per target, worst first; used where no terminal reporter is installed."""
    rows = []
    for case in data["cases"]:
        for target in case["targets"]:
            needs = target["needs"]["advice"] if target["needs"] else ""
            ci, shown = target["ci"], brief(target["observed"])
            if ci is not None:
                shown = with_interval(target["observed"], ci["low"], ci["high"])
            mark = target["verdict"] if target["gated"] else f"({target['verdict'].lower()})"
            rows.append((_ORDER.index(target["verdict"]), not target["gated"],
                         f"{mark:<14}{case['id']:<44}{target['expr']:<44}"
                         f"{shown} {target['unit']}  {needs}"))  # fmt: skip
    lines = [text.rstrip() for *_, text in sorted(rows, key=lambda row: row[:2])]
    lines += [
        f"{reason['kind']}: {reason['case'] or 'run'}: {reason['message']}"
        for reason in data["validity"]["reasons"]
    ]
    lines += data["notes"]
    counts = data["counts"]
    lines.append(
        f"{data['verdict']}: {counts['passed']} pass, {counts['failed']} fail, "
        f"{counts['inconclusive']} inconclusive, {counts['invalid']} invalid; "
        f"{counts['rounds']} rounds in {data['run']['elapsed_s']:.1f} s"
    )
    return "\n".join(lines)
