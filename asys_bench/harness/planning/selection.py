"""A part of a suite: the cases that match, and the references that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from asys_bench.config.problems import ConfigError, Origin, Problem
from asys_bench.harness.planning.suite_file import LoadedSuite
from asys_bench.harness.results.words import Role


def select(loaded: LoadedSuite, patterns: Sequence[str]) -> LoadedSuite:
    """`loaded` with the cases whose id, or whose id before the matrix, matches a glob; no pattern
    keeps all.

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
