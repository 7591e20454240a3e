"""Reading a suite: every problem at once, by file and line, before anything is measured."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from asys_bench.config.diagnosis import diagnose
from asys_bench.config.document import read_document
from asys_bench.config.overrides import apply_sets
from asys_bench.config.problems import ConfigError, Origin, Problem, did_you_mean
from asys_bench.config.sources import DATA, find_file
from asys_bench.harness.measuring.environment import CHECKS
from asys_bench.harness.planning.contender import Contender
from asys_bench.harness.planning.expansion import expand_case
from asys_bench.harness.planning.suite import SCHEMA_ID, Suite
from asys_bench.harness.planning.suite_document import SuiteDocument
from asys_bench.harness.plugins import is_file, locate, register_extra
from asys_bench.harness.results.result_run import Role
from asys_bench.registry import PluginError

SHIPPED = DATA / "suites"
"""The suites that come with the package (in a checkout: `suites/`)."""


@dataclass(frozen=True)
class LoadedSuite:
    """A checked suite and what it expands to."""

    suite: Suite
    path: Path
    shown: str
    contenders: tuple[Contender, ...]
    """Cases, then references and baselines."""
    only: tuple[str, ...] = ()
    """Globs that left a part of the cases; empty: all of them."""
    plugins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Its own plugins by kind; a file's path is absolute."""

    @property
    def sha256(self) -> str:
        """Of the resolved suite; equal suites have equal ones."""
        text = json.dumps(self.suite.to_plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def shipped_suites() -> list[str]:
    """Names of the shipped suites."""
    return sorted(path.name for path in SHIPPED.glob("*.yaml"))


def find_suite(name: str | os.PathLike[str]) -> Path | None:
    """The file `name`, or a shipped one; a leading `suites/` is dropped for those."""
    return find_file(name, SHIPPED)


def load_suite(name: str | os.PathLike[str], sets: Sequence[str] = ()) -> LoadedSuite:
    """Read, override (`path=value`), check and expand a suite.

    Raises:
        ConfigError: everything that is wrong, each with its place and a fix.
    """
    path = find_suite(name)
    if path is None:
        names = shipped_suites()
        raise ConfigError(
            [Problem.at(Origin(str(name)), "no such suite, here or among the shipped ones",
                        fix=did_you_mean(Path(name).name, names), valid=names)]
        )  # fmt: skip
    shown = os.fspath(name) if Path(name).is_file() else str(path)
    root = read_document(path, shown)
    problems = apply_sets(root, sets)
    data = root.to_data()
    if data.get("schema") != SCHEMA_ID:
        found = root.child("schema")
        origin = found.origin if found is not None else Origin(shown, 1, 1)
        problems.append(Problem.at(origin, "is not a suite that this version reads", path="schema",
                                   value=data.get("schema"), valid=(SCHEMA_ID,)))  # fmt: skip
    if problems:
        raise ConfigError(problems)
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        raise ConfigError(diagnose(error, Suite, root)) from None
    document = SuiteDocument(root, shown, path.resolve().parent)
    plugins = _own_plugins(suite, document)
    contenders = [] if document.problems else _expand(suite, document)
    if document.problems:
        raise ConfigError(document.problems)
    return LoadedSuite(suite, path.resolve(), shown, tuple(contenders), plugins=plugins)


def _own_plugins(suite: Suite, document: SuiteDocument) -> dict[str, tuple[str, ...]]:
    """Registers what the suite names under `plugins`: kind -> places, with absolute paths."""
    if suite.plugins and not suite.allow_dotted_plugins:
        named = [place for places in suite.plugins.values() for place in places]
        document.problem(
            ("plugins",),
            "names code by dotted path or file, and plugins load by entry-point name only",
            "if you trust this file: allow_dotted_plugins: true, or --set allow_dotted_plugins=true",
            value=named,
        )
        return {}
    register_extra({})
    found: dict[str, tuple[str, ...]] = {}
    for kind, places in suite.plugins.items():
        for index, place in enumerate(places):
            try:
                located = locate(place, document.folder)
                register_extra({kind: [located]})
                found[kind] = (*found.get(kind, ()), located)
            except PluginError as error:
                document.problem(("plugins", kind, index), str(error), _plugin_fix(place, document))
    return found


def _plugin_fix(place: str, document: SuiteDocument) -> str:
    missing = not (document.folder / place.partition(":")[0]).exists()
    if missing and is_file(place) and document.folder == SHIPPED.resolve():
        return (
            "comparisons with other libraries are no part of the installed package: run the suite "
            "from a checkout of the source that was installed with `pip install -e .`"
        )
    return "write package.module:object, or file.py:object with a path below the suite's folder"


def _expand(suite: Suite, document: SuiteDocument) -> list[Contender]:
    for name in suite.environment:
        if name not in CHECKS:
            fix = did_you_mean(name, CHECKS) or "remove it"
            document.problem(("environment", name), "no such check", fix, sorted(CHECKS))
    found: dict[str, Contender] = {}
    for index, case in enumerate(suite.cases):
        if any(case.id == other.id for other in suite.cases[:index]):
            document.problem(("cases", index, "id"), "is used twice", value=case.id)
            continue
        for contender in expand_case(suite, index, document):
            found.setdefault(contender.id, contender)
    cases = [c for c in found.values() if c.role == "case"]
    return cases + [c for c in found.values() if c.role != "case"]


def select(loaded: LoadedSuite, patterns: Sequence[str]) -> LoadedSuite:
    """`loaded` with the cases whose id, or whose id before the matrix, matches a glob, and the
    references that they need; no pattern keeps all.

    Raises:
        ConfigError: a pattern that matches no case.
    """
    if not patterns:
        return loaded
    cases = [c for c in loaded.contenders if c.role is Role.CASE]
    problems = [
        Problem.at(
            Origin(loaded.shown), f"--only {pattern!r} matches no case",
            valid=sorted({c.family for c in cases}), fix="name a case, or a glob over case ids",
        )
        for pattern in patterns
        if not any(_matches(c.id, c.family, pattern) for c in cases)
    ]  # fmt: skip
    if problems:
        raise ConfigError(problems)
    kept = {c.id for c in cases if any(_matches(c.id, c.family, p) for p in patterns)}
    needed = {placed.reference_id for c in cases if c.id in kept for placed in c.targets}
    contenders = tuple(c for c in loaded.contenders if c.id in kept or c.id in needed)
    return replace(loaded, contenders=contenders, only=tuple(patterns))


def _matches(case_id: str, family: str, pattern: str) -> bool:
    return case_id == pattern or fnmatchcase(case_id, pattern) or fnmatchcase(family, pattern)
