"""Results through the reporter registry: documents, and a plain table where none is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from asys_bench.config.diagnosis import diagnose
from asys_bench.config.document import read_document
from asys_bench.config.problems import ConfigError, Origin, Problem, did_you_mean
from asys_bench.config.sections.run import Section, Text, as_list
from asys_bench.config.sources import find_config
from asys_bench.contracts.reporter import ReporterPlugin, Subject
from asys_bench.harness.planning.suite_file import find_suite
from asys_bench.registry import PluginError, registry

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
            shown = "-" if target["observed"] is None else f"{target['observed']:.4g}"
            ci = target["ci"]
            if ci is not None:
                low, high = ("?" if ci[k] is None else f"{ci[k]:.4g}" for k in ("low", "high"))
                shown += f" [{low}, {high}]"
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


# The file of `asys-i-bench --config FILE`: which suite, with what, and where results go.


class BenchConfig(Section):
    """`configs/benchmark.yaml`."""

    schema_id: Literal["asys.bench/1"] = Field(alias="schema", description="format and version")
    suite: Text = Field(description="suite file, relative to this file or as `run` takes it")
    out: Path = Field(default=Path("runs/bench"), description="folder for results")
    set: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=(), description="`path=value` overrides of the suite"
    )
    reports: Annotated[tuple[Text, ...], BeforeValidator(as_list)] = Field(
        default=WRITTEN, description="reporters whose documents are written beside the result"
    )
    folder: Path = Field(default=Path(), description="of this file; filled in when it is read")

    @property
    def suite_path(self) -> str:
        """The suite, found beside this file or by its name."""
        beside = self.folder / self.suite
        return str(beside) if beside.is_file() else self.suite


def read_bench_config(name: str) -> BenchConfig:
    """The file `name`, or a shipped one.

    Raises:
        ConfigError: it is missing, or a field is wrong (by file and line).
    """
    path = find_config(name)
    if path is None:
        raise ConfigError(
            [Problem.at(Origin(name), "no such file, here or among the shipped ones")]
        )
    root = read_document(path, name)
    try:
        config = BenchConfig.model_validate(root.to_data())
    except ValidationError as error:
        raise ConfigError(diagnose(error, BenchConfig, root)) from None
    config = config.model_copy(update={"folder": path.resolve().parent})
    if find_suite(config.suite_path) is None:
        origin = root.content["suite"].origin
        raise ConfigError([Problem.at(origin, "no such suite", path="suite", value=config.suite)])
    valid = {*ALIASES, *bench_reporters()}
    unknown = [name for name in config.reports if name not in valid]
    if unknown:
        origin = root.content["reports"].origin
        raise ConfigError(
            [
                Problem.at(
                    origin, "no such reporter", path="reports", value=name, valid=sorted(valid),
                    fix=did_you_mean(name, valid) or "use one of those",
                )
                for name in unknown
            ]
        )  # fmt: skip
    return config
